//! `apply` of what heals, moves and re-encodes: version 2 of the commands.

use super::command::{DrainTarget, Outcome, Rejection, Replace, Reseat};
use super::machine::{At, Machine, Stop};
use super::view::Overlay;
use crate::ids::{InstanceId, ProfileName, StripeIndex, Tenant, Uid, VolumeId};
use crate::shard::ShardId;

fn refused() -> Stop {
    Rejection::NotAllowed("not in force yet".to_owned()).into()
}

impl Machine {
    pub(super) fn activate(&mut self, _overlay: &mut Overlay<'_>, _version: u32) -> Result<Outcome, Stop> {
        Err(refused())
    }

    pub(super) fn reseat(&mut self, _overlay: &mut Overlay<'_>, _at: At, _reseat: &Reseat) -> Result<Outcome, Stop> {
        Err(refused())
    }

    pub(super) fn report_damage(
        &mut self,
        _overlay: &mut Overlay<'_>,
        _volume: VolumeId,
        _shards: &[ShardId],
    ) -> Result<Outcome, Stop> {
        Err(refused())
    }

    pub(super) fn set_aside(
        &mut self,
        _overlay: &mut Overlay<'_>,
        _at: At,
        _instance: InstanceId,
        _stripe: StripeIndex,
        _reason: &str,
    ) -> Result<Outcome, Stop> {
        Err(refused())
    }

    pub(super) fn retry_aside(&mut self, _overlay: &mut Overlay<'_>) -> Result<Outcome, Stop> {
        Err(refused())
    }

    pub(super) fn replace(&mut self, _overlay: &mut Overlay<'_>, _at: At, _replace: &Replace) -> Result<Outcome, Stop> {
        Err(refused())
    }

    pub(super) fn set_study_profile(
        &mut self,
        _overlay: &mut Overlay<'_>,
        _tenant: &Tenant,
        _study: &Uid,
        _profile: Option<&ProfileName>,
    ) -> Result<Outcome, Stop> {
        Err(refused())
    }

    pub(super) fn set_drain(
        &mut self,
        _overlay: &mut Overlay<'_>,
        _target: DrainTarget,
        _draining: bool,
    ) -> Result<Outcome, Stop> {
        Err(refused())
    }
}
