//! TUN devices: the wires between network stacks and the router.
//!
//! **Invariants.** A device lives as long as its descriptor, wherever it was moved to. Reading and writing never wait.

use std::io;

use anyhow::Context;
use rustix::fd::{AsFd, BorrowedFd};
use tun_rs::{DeviceBuilder, SyncDevice};

/// Largest packet: jumbo frames, so that two cores are not spent on packets of 1,500 bytes.
pub const MTU_BYTES: u16 = 9_000;
/// Packets that the kernel keeps for a router that is busy.
const QUEUE_PACKETS: u32 = 4_000;

/// An open device.
pub struct Tun {
    device: SyncDevice,
}

impl Tun {
    /// Makes a device named `name` (at most 15 bytes) in this process's own network namespace.
    pub fn make(name: &str) -> anyhow::Result<Self> {
        let device = DeviceBuilder::new().name(name).mtu(MTU_BYTES).enable(false).build_sync();
        let device = device.with_context(|| format!("cannot make the TUN device {name}"))?;
        device.set_tx_queue_len(QUEUE_PACKETS).with_context(|| format!("cannot set the queue of {name}"))?;
        rustix::io::ioctl_fionbio(&device, true)?;
        Ok(Self { device })
    }

    /// Takes a packet that waits; `WouldBlock` when there is none.
    pub fn take(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.device, buffer)?)
    }

    /// Hands a packet over to the stack behind the device.
    pub fn give(&self, packet: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.device, packet)?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
