//! stub
use std::sync::Weak;
use openraft::AsyncRuntime;
use crate::facade::Inner;
pub(crate) async fn run<R: AsyncRuntime>(_inner: Weak<Inner<R>>) {}
