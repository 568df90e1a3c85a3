//! Bounds of the transport, each with its arithmetic. Both sides of a connection use the same numbers.

use std::time::Duration;

/// HTTP/2 window of one stream: a whole shard of the usual profiles (4 MiB at k = 4) twice over, so that one transfer
/// over 1 Gbit/s × 60 ms (7.5 MB) never waits for a window update.
pub const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// HTTP/2 window of one connection: eight streams at full speed; 10 Gbit/s × 50 ms (62 MB).
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Largest HTTP/2 frame: a shard of 1 MiB in one piece, which is then handed on without a copy. Longer ones delay a
/// neighbour on the same connection by more than 8 ms at 1 Gbit/s.
pub const FRAME_BYTES: u32 = 1 << 20;
/// Unsent bytes that one stream may queue: two frames keep the connection busy.
pub const SEND_BUFFER_BYTES: usize = 2 << 20;
/// Plaintext that TLS may hold before it is written: one frame, in one system call.
pub const TLS_BUFFER_BYTES: usize = (FRAME_BYTES as usize) + (64 << 10);
/// Bytes asked of the kernel at once: a frame in four calls instead of one call per 4 KiB.
pub const READ_BUFFER_BYTES: usize = 256 << 10;
/// Bytes of request headers. Ours need 200; error details come in replies.
pub const HEADER_LIST_BYTES: u32 = 16 << 10;

/// Connections of a target for shards: two, so that two cores can encrypt; more only add handshakes.
pub const BULK_CONNECTIONS: usize = 2;
/// Targets with open connections; a cluster has tens of nodes. Beyond it, all are closed and dialled again.
pub const TARGETS_MAX: usize = 1_024;
/// TCP and TLS together: more than 3 round trips of 160 ms mean that the target is not there.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often an otherwise silent connection is probed.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// After this long without an answer to a probe the connection is given up.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Open connections of a server: 256 MiB of TLS and HTTP/2 state at 64 KiB each.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Handshakes at once: each costs about 1 ms of one core, so a queue of 64 delays a newcomer by 64 ms.
pub const HANDSHAKES_MAX: usize = 64;
/// A peer that has not finished its handshake by then is dropped.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Concurrent calls of one connection.
pub const STREAMS_MAX: u32 = 2_048;
/// Bytes of unary requests being received or handled and of replies being sent by one server, in KiB: 512 MiB. Above it requests are refused
/// early instead of the node running out of memory.
pub const REQUEST_KIB_MAX: usize = 512 << 10;
/// Longest a unary call may take when its caller names no deadline.
pub const CALL_DEADLINE: Duration = Duration::from_secs(120);
/// An upload without a byte for this long is abandoned.
pub const UPLOAD_SILENCE: Duration = Duration::from_secs(60);
/// How long calls in progress may take to end after shutdown was asked for.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest piece of a download: one frame of 256 KiB keeps latency and copies low.
pub const DOWNLOAD_PIECE_BYTES: usize = 256 << 10;
