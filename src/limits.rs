//! Every bound of the system, with its reason.
//!
//! Where a command-line option can change a bound, the constant here is the option's default.

use std::time::{Duration, Instant};

/// `now + wait`. The wait is capped at 100 years. `now` where an [`Instant`] cannot represent the sum.
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait.min(WAIT_MAX)).unwrap_or(now)
}

/// Longest wait of [`after`].
const WAIT_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Bytes of one ZMTP frame. A plugin's source and lockfile are sent in one frame.
pub const ZMTP_FRAME_SIZE_MAX: u64 = 64 << 20;
/// Bytes of one ZMTP message.
pub const ZMTP_MESSAGE_SIZE_MAX: u64 = 64 << 20;
/// Frames of one ZMTP message; the control protocol needs two.
pub const ZMTP_FRAMES_MAX: usize = 4096;
/// Bytes of one ZMTP command: READY with metadata is the largest.
pub const ZMTP_COMMAND_SIZE_MAX: u64 = 64 << 10;
/// Bytes of one handshake command. Peers are not authenticated yet. This is twice the size of Casparian's
/// own largest handshake command.
#[cfg(not(fuzzing))]
pub const ZMTP_HANDSHAKE_COMMAND_SIZE_MAX: u64 = 10 << 10;
/// The same for fuzzing: so small that fuzz inputs exceed it.
#[cfg(fuzzing)]
pub const ZMTP_HANDSHAKE_COMMAND_SIZE_MAX: u64 = 1 << 10;
/// Bytes of commands between the frames of one message: a PING a second for a day.
#[cfg(not(fuzzing))]
pub const ZMTP_COMMANDS_IN_MESSAGE_SIZE_MAX: usize = 1 << 20;
/// The same for fuzzing: so small that fuzz inputs exceed it.
#[cfg(fuzzing)]
pub const ZMTP_COMMANDS_IN_MESSAGE_SIZE_MAX: usize = 1 << 10;

/// Bytes of a peer's application metadata that are kept.
pub const METADATA_KEPT_MAX: usize = 4 << 10;

/// Bytes of a file with one key.
pub const KEY_FILE_SIZE_MAX: u64 = 4 << 10;
/// The comments that begin files of secret keys: of CURVE, and of publishers (Ed25519).
pub const SECRET_KEY_MARKS: [&str; 2] = [
    "# CURVE secret key of Casparian",
    "# Ed25519 secret key of a Casparian publisher",
];
/// Bytes of a list of authorized keys: about ten thousand lines.
pub const AUTHORIZED_KEYS_SIZE_MAX: u64 = 1 << 20;
/// Age from which a file's or folder's time of modification shows that nothing has changed since.
pub const FILE_TIME_STEP: Duration = Duration::from_secs(2);
/// Files in a protected folder that are checked for secret keys and databases, which are hidden from plugins.
pub const PROTECTED_FILES_MAX: usize = 1_000;
/// Sentinels of a user whose key files the user's workers hide from plugins.
pub const KEY_NOTES_MAX: usize = 256;
/// Age at which a sentinel's unfinished list of its key files is removed.
pub const KEY_NOTE_UNFINISHED_MAX: Duration = Duration::from_secs(60);
/// Bytes of one sentinel's list of its key files.
pub const KEY_NOTE_SIZE_MAX: u64 = 64 << 10;
/// How often the lists of authorized keys and of trusted publishers are read for changes.
pub const KEY_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// First size of a connection's receive buffer. An idle connection has no buffer.
pub const RECEIVE_BUFFER_SIZE_MIN: usize = 512;
/// Read-ahead of a busy connection. For a larger message the buffer grows until the message is complete.
pub const RECEIVE_BUFFER_SIZE_MAX: usize = 256 << 10;
/// Read-ahead during the handshake.
pub const HANDSHAKE_READ_AHEAD: usize = 4 << 10;

/// Size of the first chunk of a send queue.
pub const SEND_CHUNK_SIZE_MIN: usize = 4 << 10;
/// Size of further chunks of a send queue.
pub const SEND_CHUNK_SIZE_MAX: usize = 64 << 10;

/// Encrypted bytes of a CURVE connection that the kernel has not accepted yet. One message may exceed it.
pub const SEALED_BYTES_MAX: usize = 128 << 10;
/// How many bytes CURVE encrypts for a peer before other peers come first: 1 to 3 ms.
pub const SEAL_BYTES_PER_ITERATION: usize = 1 << 20;

const _: () = assert!(ZMTP_FRAME_SIZE_MAX <= ZMTP_MESSAGE_SIZE_MAX);
const _: () = assert!(ZMTP_COMMAND_SIZE_MAX <= ZMTP_FRAME_SIZE_MAX);
const _: () = assert!(ZMTP_HANDSHAKE_COMMAND_SIZE_MAX <= ZMTP_COMMAND_SIZE_MAX);
#[cfg(not(fuzzing))]
const _: () = assert!(METADATA_KEPT_MAX as u64 * 2 <= ZMTP_HANDSHAKE_COMMAND_SIZE_MAX);
const _: () = assert!(ZMTP_MESSAGE_SIZE_MAX <= u32::MAX as u64);
const _: () = assert!(RECEIVE_BUFFER_SIZE_MIN <= RECEIVE_BUFFER_SIZE_MAX);
const _: () = assert!(CELL_SIZE_MAX + CELL_OVERHEAD as u64 + (4 << 20) < i32::MAX as u64);
const _: () = assert!(SEND_CHUNK_SIZE_MIN <= SEND_CHUNK_SIZE_MAX);

/// Readiness events taken per wait.
pub const EVENTS_PER_WAIT: usize = 1024;

/// Messages queued per peer (libzmq's default).
pub const SEND_HWM: usize = 1000;
/// Bytes queued per peer.
pub const SEND_HWM_BYTES: u64 = 64 << 20;
/// Bytes queued for all peers of a socket.
pub const SEND_TOTAL_BYTES: u64 = 1 << 30;
/// Memory of a socket for messages that its peers send.
pub const RECEIVE_TOTAL_BYTES: u64 = 1 << 30;
/// Log lines about connections that a socket writes per second.
pub const SOCKET_LOG_LINES_PER_SECOND: u32 = 10;
/// At this number of queued bytes a send writes at once, without waiting for the flush.
pub const FLUSH_BYTES: u64 = 64 << 10;
/// Slices of one writev call.
pub const SLICES_PER_WRITE: usize = 16;
/// Unsent bytes of a tcp connection in the kernel (`TCP_NOTSENT_LOWAT`). Bytes that were sent and not
/// acknowledged are not included. Half of this costs a third of the throughput of 4 KiB messages on loopback.
pub const UNSENT_BYTES: u32 = 512 << 10;
/// Reads in one call to receive, so that a flood of messages leaves time for other work.
pub const READS_PER_RECEIVE: usize = 64;
/// Connections accepted from a listener per event-loop iteration.
pub const ACCEPTS_PER_ITERATION: usize = 64;
/// Reads of the kernel's tables of sockets, to find the user of a local connection. A read may miss an entry
/// that moves meanwhile.
pub const OWNER_READS_MAX: usize = 3;
/// Connections of a listener that wait to be accepted; the system may allow fewer.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Ports that are tried for a host with several addresses, when the system chooses the port.
pub const SHARED_PORT_ATTEMPTS_MAX: usize = 16;
/// Addresses of a host to which connecting is tried.
pub const ADDRESSES_MAX: usize = 16;
/// Pause before the next address of a host is tried while an attempt has not succeeded (RFC 8305 §5).
pub const ATTEMPT_INTERVAL: Duration = Duration::from_millis(250);
/// Interval at which a peer that another connection replaces checks whether that connection still exists.
pub const STAND_BY_INTERVAL: Duration = Duration::from_secs(1);
/// Connections whose routing ID another connection has taken, and whose messages the owner has not taken yet.
pub const DRAINING_MAX: usize = 1024;
/// Time in which such a connection must end.
pub const CONNECTION_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that are read from such a connection.
pub const DRAIN_BYTES_MAX: usize = 64 << 20;
/// Time in which a refused peer must close its end. Its messages are counted meanwhile.
pub const REFUSED_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that are read from a refused peer.
pub const REFUSED_BYTES_MAX: usize = 4 << 20;
/// Pause of a listener after an error of accept, such as EMFILE.
pub const ACCEPT_REST: Duration = Duration::from_millis(200);
/// The buffers of a connection that was silent for this long are freed.
pub const IDLE_MEMORY_AFTER: Duration = Duration::from_secs(5);
/// Connections of a socket.
pub const CONNECTIONS_MAX: usize = 65_536;
/// Connections of a socket with an incomplete handshake.
pub const HANDSHAKES_MAX: usize = 16_384;
/// The same for the sentinel of `casparian run`. Its only peer is the worker of the run. Both share one
/// limit of descriptors.
pub const RUN_HANDSHAKES_MAX: usize = 16;
/// Time for connect and handshake together.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that may be lost while one message is sent, before the message is dropped. Otherwise a peer
/// that rejects a message, for example because of its size, would never get the messages queued behind it.
pub const MESSAGE_CUTS_MAX: u32 = 10;
/// Shortest pause before a reconnect.
pub const RECONNECT_INTERVAL_MIN: Duration = Duration::from_millis(1);
/// First pause before a reconnect.
pub const RECONNECT_INTERVAL: Duration = Duration::from_millis(100);
/// Longest pause before a reconnect.
pub const RECONNECT_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// Lookups of host names at a time, in the process.
pub const LOOKUPS_MAX: usize = 32;
/// Pause before the next try to look up a peer's host name while [`LOOKUPS_MAX`] lookups are running.
pub const LOOKUP_PAUSE: Duration = Duration::from_millis(100);
/// Unread lifecycle events of a socket.
pub const SOCKET_EVENTS_MAX: usize = 4096;

/// Waiting jobs that `casparian run` compares with their rows per poll. It polls once a second.
pub const WAITING_PER_POLL: usize = 10_000;

/// Messages that a sentinel or worker receives per event-loop iteration.
pub const MESSAGES_PER_ITERATION: usize = 4096;
/// Length of a lease. A worker asks for renewal every quarter of it.
pub const LEASE: Duration = Duration::from_secs(10);
/// The longest lease that an operator may set, in seconds: a day.
pub const LEASE_SECONDS_MAX: i64 = 86_400;
/// Time after the end of a lease before the job is given to another worker: how far two clocks may drift
/// apart during a lease.
pub const LEASE_MARGIN: Duration = Duration::from_secs(2);
/// A worker must end an attempt within this time. Otherwise the attempt is lost. It is far above
/// [`JOB_TIMEOUT`], because workers of the reference system have no time-out for a job.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(86_400);
/// The same for `casparian run`, whose worker has a time-out for every job.
pub const ATTEMPT_TIMEOUT_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);
/// How long a worker may be disconnected before it is reported offline. Longer than a reconnect takes.
pub const WORKER_GRACE: Duration = Duration::from_secs(3);
/// How often the time at which connected workers were last seen is written to the database.
pub const SEEN_INTERVAL: Duration = Duration::from_secs(10);
/// Where the sentinel's lock cannot be checked: age of the last-seen time of a connected worker from which
/// on no sentinel is assumed to run. Three times [`SEEN_INTERVAL`], because a sentinel may wait for its
/// database.
pub const SEEN_AGE_MAX: Duration = Duration::from_secs(30);
/// How often a sentinel that starts tries to get its lock. Programs that check for a sentinel have the lock
/// for microseconds.
pub const LOCK_TRIES: usize = 5;
/// The pause between these tries.
pub const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Changes that wait while the database fails. At the limit no more messages are received.
pub const CHANGES_MAX: usize = 100_000;
/// How long a second process that asks for the ID of a connected worker waits for that worker's sign of life.
pub const CONTENDER_WAIT: Duration = Duration::from_secs(2);
/// Such processes that wait at a time.
pub const CONTENDERS_MAX: usize = 1000;
/// Attempts that a worker may hold per slot: running, and waiting for exclusive sinks.
pub const CLAIMS_PER_SLOT_MAX: usize = 4;
/// Exclusive sinks of one attempt.
pub const EXCLUSIVE_SINKS_MAX: usize = 1000;
/// Attempts per exclusive sink whose workers did not report an end, and sinks with such attempts.
pub const UNREPORTED_MAX: usize = 1000;
/// Bytes of the reason that a worker reports for accepting no jobs.
pub const TROUBLE_SIZE_MAX: usize = 1000;
/// Bytes of the reason that a worker reports for avoiding an environment.
pub const ENVIRONMENT_REASON_SIZE_MAX: usize = 500;
/// How often a job may lose its worker. After more losses the job itself is the probable cause.
pub const RETRIES_MAX: u32 = 3;
/// How long a sentinel or worker that stops waits for running jobs.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of ZMTP PING between sentinel and worker.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// A connection between sentinel and worker is closed after this time without a byte.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a sentinel polls for commits of other programs. Rows that they insert are found within 50 ms.
pub const QUEUE_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How often leases are checked.
pub const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);
/// If more time than this passes between two iterations of a sentinel, without its own work, the sentinel,
/// its host or its disk was suspended. That time does not count for leases, because the requests of workers
/// waited meanwhile.
pub const SUSPENDED_AFTER: Duration = Duration::from_millis(2500);
/// How often RUNNING rows are compared with the attempts of workers when no other program has committed.
pub const CLAIMS_POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Expired leases that are processed per transaction.
pub const EXPIRED_PER_ITERATION: usize = 1000;
/// Attempts of workers that an iteration compares with their rows, and RUNNING rows that it compares with
/// the attempts of workers.
pub const CLAIMS_PER_ITERATION: usize = 1000;
/// Ends without a receipt that are logged one by one when many occur at once.
pub const ENDS_LOGGED_MAX: usize = 20;
/// Settlements that are created per transaction.
pub const SETTLED_PER_ITERATION: usize = 64;
/// Settlements that workers are asked for at a time. A worker processes one after the other.
pub const SETTLING_MAX: usize = 256;
/// Bytes of these settlements in JSON, so that one answer can contain all of them. The last one may exceed
/// it.
pub const SETTLING_SIZE_MAX: usize = 16 << 20;
/// How long a worker may take for a settlement before another worker may be asked. Longer than a busy disk
/// needs. Each settlement bars the earlier attempts.
pub const SETTLE_WAIT: Duration = Duration::from_secs(60);
/// Different plugins with queued jobs that one transaction considers. The next transaction continues behind
/// them. Each plugin costs an index search, and a claim for each worker that may run it.
pub const QUEUED_PLUGINS_PER_TRANSACTION: usize = 1000;
/// Plugins for which a sentinel remembers that it has logged that their jobs wait.
pub const WAITING_LOGGED_MAX: usize = 1000;
/// Plugins of which a sentinel keeps the code, or their part of DISPATCH, in memory.
pub const PLUGINS_CACHED_MAX: usize = 10_000;
/// How long a sentinel's statement waits for another program's transaction. Answers to workers are delayed
/// by the same time.
pub const STORE_BUSY_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a statement waits for another program's transaction in programs that do not try again.
pub const STORE_OPEN_WAIT: Duration = Duration::from_secs(5);
/// Pause before a sentinel that starts tries again to open its database.
pub const STORE_OPEN_PAUSE: Duration = Duration::from_secs(2);
/// Pause before the next try to change a database to WAL mode while another program has it locked.
pub const WAL_CHANGE_PAUSE: Duration = Duration::from_millis(5);
/// Bytes of a database's absolute path. SQLite's limit is 512, and the journal's name is 8 bytes longer than
/// that of the database.
pub const SQLITE_PATH_SIZE_MAX: usize = 504;
/// First pause after a failed transaction; it doubles.
pub const STORE_RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause after a failed transaction.
pub const STORE_RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often a repeated failure of the database is logged.
pub const STORE_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Names in one IDENTIFY.
pub const CAPABILITIES_MAX: usize = 10_000;
/// Bytes of these names. The database keeps them for each worker that it remembers.
pub const CAPABILITIES_SIZE_MAX: usize = 256 << 10;
/// Memory for the names of all workers, divided by the number of connected workers. A list needs at most its
/// share; each name needs [`CAPABILITY_OVERHEAD`] bytes beside its own.
pub const CAPABILITIES_TOTAL_SIZE_MAX: usize = 64 << 20;
/// Memory of a name beside its bytes.
pub const CAPABILITY_OVERHEAD: usize = 100;
/// Bytes of the names of a worker that is offline. Of a longer list the database keeps none.
pub const CAPABILITIES_OFFLINE_SIZE_MAX: i64 = 4 << 10;
/// Bytes of a message of a worker that is not a receipt. It lists attempts and environments.
pub const WORKER_MESSAGE_SIZE_MAX: usize = 1 << 20;
/// Bytes of messages that a sentinel receives per event-loop iteration.
pub const MESSAGE_BYTES_PER_ITERATION: usize = 32 << 20;
/// Attempts that a worker lists: those it holds, and those whose receipts are not acknowledged.
pub const LISTED_ATTEMPTS_MAX: usize = 16_384;
/// Attempts that one answer asks a worker to stop, in addition to those that it holds.
pub const ABORTS_MAX: usize = 4096;
/// Metrics of a receipt. Casparian's worker has about thirty.
pub const METRICS_MAX: usize = 256;
/// Fields of an artifact of a receipt. Casparian's worker has six.
pub const ARTIFACT_FIELDS_MAX: usize = 32;
/// Bytes of such a field: a URI with a path of 4096 bytes, escaped.
pub const ARTIFACT_TEXT_SIZE_MAX: usize = 16 << 10;
/// Nesting depth of lists and maps in a Parquet file. The time that DuckDB takes for such a type doubles
/// with each level, and is about a second at this depth.
pub const LIST_LEVELS_MAX: usize = 20;
/// Nesting depth of lists, maps and structs in a Parquet file. pyarrow does not open a file with 100 Parquet
/// levels. A list has two levels.
pub const TYPE_LEVELS_MAX: usize = 48;
/// Bytes of the names and types of a table's columns in a receipt.
pub const TABLE_COLUMNS_SIZE_MAX: usize = 8 << 10;
/// Bytes of the names and types of the columns of all tables of a job.
pub const TABLES_COLUMNS_SIZE_MAX: usize = 256 << 10;
const _: () = assert!(TABLE_COLUMNS_SIZE_MAX < ARTIFACT_TEXT_SIZE_MAX);
/// Bytes of receipts that wait for a transaction. At the limit no more messages are received.
pub const RECEIPTS_SIZE_MAX: usize = 64 << 20;
/// Slots of one worker.
pub const WORKER_SLOTS_MAX: usize = 1024;
/// Workers that a database remembers. Above the limit, disconnected ones are deleted.
pub const WORKER_SESSIONS_MAX: i64 = 10_000;
/// How long a database remembers a disconnected worker.
pub const WORKER_SESSION_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Retries of a job after failures of environments and workers, unless `--retries` is more or zero.
pub const INFRA_RETRIES_MAX: u32 = 10;
/// Attempts of a job in a row that may fail because the content of the input is not that of the file
/// version, and are repeated. The pauses between them add up to 7 s.
pub const VERSION_CHANGES_MAX: i64 = 4;
/// Bytes of a content hash in the catalogue that is sent to workers. Casparian's hashes have 64 hex digits.
pub const CONTENT_HASH_SIZE_MAX: usize = 256;
/// Retries of a job whose input changes while it runs. An input may change without end.
pub const INPUT_RETRIES_MAX: u32 = 3;
/// Retries of a job while other programs have its sink's database locked. Their pauses add up to more than an
/// hour. So they outlast a job with the default time-out that reads the database.
pub const LOCKED_RETRIES_MAX: u32 = 24;
/// Retries of a job whose plugin process was killed from outside while no other job ran.
pub const KILLED_RETRIES_MAX: u32 = 2;
/// After this many losses of workers that ran other jobs too, a job runs alone on its worker. If the job ends
/// its workers, it is identified, and no other job is lost with it. A single loss may be a restart.
pub const SHARED_LOSSES_TOGETHER: i64 = 2;
/// Losses of workers that ran other jobs too, before a job fails.
pub const SHARED_LOSSES_MAX: i64 = 20;
/// How often in a row a job may be given back because its worker was stopped while the job ran. Further
/// times count as lost workers, because the job may be what stops them. Every stop of a worker moves its long
/// jobs to another worker: about seven times when a thousand workers are restarted one by one.
pub const GIVEN_BACK_MAX: i64 = 10;
/// First pause before a job is retried; it doubles with each retry.
pub const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause before a job is retried, without its jitter of up to a fifth more or less.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(300);
/// Unusable rows that one transaction ends or skips, so that other rows do not wait for them.
pub const UNUSABLE_ROWS_PER_TRANSACTION: usize = 250;
/// Pause after such a transaction, so that other programs can write.
pub const BOUNDED_PAUSE: Duration = Duration::from_millis(25);
/// Rows that are skipped because code in the schema refuses their changes. Above the limit all are tried
/// again.
pub const REFUSED_ROWS_MAX: usize = 250_000;
/// For how long they are skipped at first. The pause doubles while some are refused again.
pub const REFUSED_ROWS_PAUSE: Duration = Duration::from_secs(10);
/// Longest time for which they are skipped.
pub const REFUSED_ROWS_PAUSE_MAX: Duration = Duration::from_secs(160);
/// How many of them are tried again at a time, once a second, so that other rows do not wait for them.
pub const RETRIED_PER_TRANSACTION: usize = 1000;
/// Attempts of a job in a row during which another program changed the row. After more of them the job is
/// claimed again only after a pause.
pub const ROW_CHANGED_ATTEMPTS_MAX: u32 = 2;
/// How often rows may roll back the transaction of one iteration, before the iteration ends without a commit.
pub const ROLLBACKS_PER_ITERATION: usize = 32;
/// How often the pause of a job that waits for the output of another job doubles: up to 32 s.
pub const WAIT_DOUBLINGS_MAX: i64 = 5;
/// How often a job waits for the settlement of another job that has ended: about ten minutes in all.
pub const UNSETTLED_WAITS_MAX: i64 = 20;
/// Rows with a due retry that one transaction queues.
pub const WOKEN_PER_TRANSACTION: usize = 1000;
/// Ended attempts that the database keeps for each job.
pub const ATTEMPTS_KEPT: i64 = 100;
/// Earlier attempts in a job's DISPATCH: more than the database keeps, unless
/// another program has added rows.
pub const HISTORY_MAX: usize = 1000;
/// Last printed lines of a plugin that are kept for each attempt.
pub const ATTEMPT_LOG_LINES: usize = 50;
/// Bytes of a job's `config_overrides`.
pub const OVERRIDES_SIZE_MAX: usize = 1 << 20;
/// Bytes of a source or a lockfile in the database. In JSON either fits into one frame.
pub const SOURCE_SIZE_MAX: usize = 8 << 20;
/// Bytes of a source that is deployed: each DISPATCH contains it.
pub const DEPLOY_SOURCE_SIZE_MAX: usize = 8 << 20;
/// Bytes of a lockfile that is deployed: each PREPARE_ENV contains it.
pub const DEPLOY_LOCKFILE_SIZE_MAX: usize = 4 << 20;
/// Bytes of both together.
pub const DEPLOY_SIZE_MAX: usize = 10 << 20;
const _: () = assert!(DEPLOY_SOURCE_SIZE_MAX <= SOURCE_SIZE_MAX);
const _: () = assert!(DEPLOY_LOCKFILE_SIZE_MAX <= SOURCE_SIZE_MAX);
// In JSON a byte becomes at most six (`\u0001`).
const _: () = assert!((6 * DEPLOY_SIZE_MAX + (1 << 20)) as u64 <= ZMTP_FRAME_SIZE_MAX);
/// Bytes of the files of a plugin that is a folder. The plugin's source contains them as base64, four bytes
/// for three, and the list of their paths.
pub const FOLDER_SIZE_MAX: usize = 5 << 20;
/// Files of a plugin that is a folder.
pub const FOLDER_FILES_MAX: usize = 2000;
/// Bytes of the paths of these files together.
pub const FOLDER_PATHS_SIZE_MAX: usize = 256 << 10;
/// Depth of folders within the plugin.
pub const FOLDER_DEPTH_MAX: usize = 32;
/// Entries of the folder that are listed, including those that do not belong to the plugin.
pub const FOLDER_ENTRIES_MAX: usize = 100_000;
// Each line of base64 has three additional bytes. In JSON a byte of a path without control characters becomes
// at most two, and each path has keys beside it.
const _: () = assert!(
    FOLDER_SIZE_MAX / 3 * 4
        + FOLDER_SIZE_MAX / 256
        + 2 * FOLDER_PATHS_SIZE_MAX
        + 64 * FOLDER_FILES_MAX
        <= DEPLOY_SOURCE_SIZE_MAX
);
/// Bytes of a plugin's default parameters, and of a job's own. Both together are sent to the plugin process
/// in one environment variable, which the kernel limits to 128 KiB, and in one message of a Unix socket.
pub const PARAMETERS_SIZE_MAX: usize = 32 << 10;
/// Sinks that `cf_topic_config` may have for one plugin, and `config_overrides` for one job.
pub const SINKS_MAX: usize = 10_000;
/// Files that `submit` queues in one transaction.
pub const SUBMIT_BATCH: usize = 500;
/// Environments that a sentinel remembers per worker, and that a worker has at a time.
pub const WORKER_ENVIRONMENTS_MAX: usize = 1024;
/// Bytes of a plugin's name.
pub const PLUGIN_NAME_SIZE_MAX: usize = 100;
/// Bytes of a plugin's version.
pub const PLUGIN_VERSION_SIZE_MAX: usize = 50;
/// Bytes of the directory ID of a publisher.
pub const AZURE_OID_SIZE_MAX: usize = 36;
/// Entries of `system_requirements` in DEPLOY.
pub const SYSTEM_REQUIREMENTS_MAX: usize = 100;
/// Bytes of a pattern in the MANIFEST of a plugin that a client deploys.
pub const MANIFEST_PATTERN_SIZE_MAX: usize = 500;
/// Bytes of a sink's URI in such a MANIFEST.
pub const MANIFEST_URI_SIZE_MAX: usize = 1000;
/// Sinks, and subscriptions, in such a MANIFEST.
pub const MANIFEST_ENTRIES_MAX: usize = 1000;
/// Bytes of deployments that a sentinel processes per event-loop iteration. The last one may exceed it. They
/// are hashed and parsed: a debug build needs a second for the largest.
pub const DEPLOY_BYTES_PER_ITERATION: usize = 1 << 20;
/// Bytes of sources and lockfiles of deployments that wait for a transaction. The last one may exceed it.
pub const DEPLOYS_WAITING_SIZE_MAX: usize = 64 << 20;
/// Bytes that such a deployment counts in addition to its source and lockfile.
pub const DEPLOY_OVERHEAD: usize = 64 << 10;
/// Pause between log lines about deployments that were refused.
pub const DEPLOY_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of the reason why a deployment is refused.
pub const DEPLOY_REASON_SIZE_MAX: usize = 2000;
/// How long `casparian deploy --connect` waits for the sentinel's answer.
pub const DEPLOY_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it tries to connect.
pub const DEPLOY_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Keys of one trusted publisher. A signature is verified with each.
pub const PUBLISHER_KEYS_MAX: usize = 16;
/// Plugins, and sinks of all plugins together, that a sentinel reads at once to announce changes to workers.
pub const DEPLOYMENTS_MAX: usize = 10_000;
/// How often that is done when no other program has changed the database.
pub const DEPLOYMENTS_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Environments that workers create before there are jobs. Others are created for their first job.
pub const ENVIRONMENTS_WANTED_MAX: usize = 64;
/// How often a worker checks which of its environments exist.
pub const ENVIRONMENTS_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Environments that a worker is asked to prepare at once, before jobs need them.
pub const PREPARED_AT_ONCE: usize = 2;
/// How long a worker that has not answered PREPARE_ENV counts as creating the environment.
pub const PREPARE_WAIT: Duration = Duration::from_secs(60);
/// Lockfiles that are sent at once, of up to [`SOURCE_SIZE_MAX`] bytes each.
pub const PREPARES_PER_POLL: usize = 16;
/// Nesting depth of lists in a plugin's MANIFEST.
pub const MANIFEST_DEPTH_MAX: usize = 32;
/// Bytes of a log record's message. It may contain text of other programs, and logs are kept for long.
pub const LOG_MESSAGE_SIZE_MAX: usize = 4 << 10;
/// Bytes of one message on stderr: the last lines of a failed tool, or a backtrace, are the longest.
pub const STDERR_MESSAGE_SIZE_MAX: usize = 64 << 10;
/// Characters of a cell of a table that is printed for people. The longest paths in use have some hundred.
pub const TABLE_CELL_MAX: usize = 500;
/// Lines that one log statement in the source writes each second. Debug lines are not limited.
pub const LOG_LINES_PER_SECOND: u32 = 20;
/// Bytes that are written to stderr at a time (PIPE_BUF). A pipe that polls as writable accepts them without
/// blocking.
pub const STDERR_PART_SIZE: usize = 4 << 10;
/// How long a program that ends waits until the reader of stderr accepts its last line.
pub const LAST_LINE_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of the URIs in a row's `published`, as JSON: as many as in the largest receipt.
pub const PUBLISHED_SIZE_MAX: usize = RECEIPT_SIZE_MAX;
const _: () = assert!((SETTLING_SIZE_MAX + 2 * PUBLISHED_SIZE_MAX) as u64 <= ZMTP_MESSAGE_SIZE_MAX);
/// Bytes of a name that a peer chose.
pub const NAME_SIZE_MAX: usize = 255;
/// Bytes of an error message in a receipt.
pub const ERROR_TEXT_SIZE_MAX: usize = 16 << 10;
/// Bytes of a plugin's last printed lines in a receipt.
pub const LOG_TAIL_SIZE_MAX: usize = 16 << 10;
/// Notes on a job's output at the beginning of its log, and bytes of each. Together they take at most half of
/// the log's space.
pub const OUTPUT_NOTES_MAX: usize = 16;
/// See [`OUTPUT_NOTES_MAX`].
pub const OUTPUT_NOTE_SIZE_MAX: usize = 480;
const _: () = assert!(OUTPUT_NOTES_MAX * OUTPUT_NOTE_SIZE_MAX <= LOG_TAIL_SIZE_MAX / 2);

/// Time in which a plugin process must connect.
pub const PLUGIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Time in which a plugin process must exit after its end of output.
pub const PLUGIN_EXIT_TIMEOUT: Duration = Duration::from_secs(10);
/// A plugin process that failed gets this long to exit by itself, so that its last printed lines are kept.
pub const PLUGIN_LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);

/// Time in which the bridge of an exited process must end or deliver bytes. Everything that the process sent
/// is already in the kernel. Only another process that has the bridge open can keep it open.
pub const BRIDGE_DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Time in which a killed plugin process must end. Otherwise the worker gives it up, so that its slot is
/// free.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which a fork server must report the exit of a child that the kernel shows as exited.
pub const FORK_SERVER_REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time in which a fork server must do its imports. Large packages on cold disks take a minute.
pub const FORK_SERVER_START_TIMEOUT: Duration = Duration::from_secs(120);
/// Time in which a fork server must answer a request or a ping.
pub const FORK_SERVER_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that a fork server gets beyond a deadline, because its answers may have waited while the worker was
/// paused.
pub const FORK_SERVER_REPRIEVE: Duration = Duration::from_secs(2);
/// How often a fork server with jobs is pinged.
pub const FORK_SERVER_PING_INTERVAL: Duration = Duration::from_secs(5);
/// First pause before a fork server that failed twice in a row is started again. It doubles.
pub const FORK_SERVER_RESTART_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause before a fork server is started again.
pub const FORK_SERVER_RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often a fork server may end with only one job in it, before that counts as the plugin's failure.
pub const FORK_SERVER_DEATHS_MAX: u32 = 2;
/// How often in a row a job is given back because its process had another file at the path of its input, after
/// mounts had changed.
pub const OTHER_MOUNTS_MAX: u32 = 3;
/// Jobs that a worker remembers because their fork server ended while they ran, or had other mounts.
pub const SUSPECTS_MAX: usize = 1024;
/// Pause after which a worker polls again for killed processes that have not ended; it doubles.
pub const LEFTOVERS_INTERVAL: Duration = Duration::from_millis(20);
/// Longest pause before it polls again.
pub const LEFTOVERS_INTERVAL_MAX: Duration = Duration::from_secs(2);
/// How long a worker that ends waits until its fork servers have killed the processes that plugins started,
/// and until processes of lost fork servers have ended.
pub const LEFTOVERS_WAIT: Duration = Duration::from_secs(2);
/// Killed processes that have not ended and that a worker watches.
pub const LEFTOVERS_MAX: usize = 256;
/// Connections accepted from a bridge's listener per call.
pub const BRIDGE_ACCEPTS_PER_CALL: usize = 16;
/// Shortest interval between samples of a running plugin's memory.
pub const RSS_SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Levels of folders that are removed at once.
pub const CLEANER_ROUNDS_MAX: usize = 1 << 20;
/// Time since its last change after which a worker's private folder without a lock file is a leftover.
pub const UNLOCKED_FOLDER_MAX: Duration = Duration::from_secs(86_400);
/// Age from which an unfinished file of a resolution is one that a killed program has left.
pub const RESOLUTION_WRITE_MAX: Duration = Duration::from_secs(600);
/// How long a worker that stops removes the folders of its last jobs. The next worker removes the rest.
pub const CLEAN_AT_STOP: Duration = Duration::from_secs(2);
/// Failures in a row that are the worker's own, after which it accepts no jobs.
pub const TROUBLE_FAILURES: u32 = 3;
/// First pause before a worker in trouble tests itself; it doubles.
pub const SELF_TEST_PAUSE_MIN: Duration = Duration::from_secs(1);
/// After a self-test has succeeded, the worker tries one job. When that job has run for this long, it is
/// likely to succeed, and other jobs are tried beside it.
pub const TRIAL_TIME: Duration = Duration::from_secs(10);
/// Longest pause before a worker in trouble tests itself.
pub const SELF_TEST_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Tries to create an environment before jobs that need it fail.
pub const PROVISION_ATTEMPTS: u32 = 3;
/// How long a worker waits for another program that checks or evicts an environment.
pub const EVICTION_PAUSE: Duration = Duration::from_millis(10);
/// Environments that a worker creates at once, so that a tool that hangs does not delay the others.
pub const ENVIRONMENTS_MADE_AT_ONCE: usize = 4;
/// How long an unused environment stays locked, so that it is not locked again for each job.
pub const ENVIRONMENT_IDLE: Duration = Duration::from_secs(10);
/// How often the time of last use is updated of an environment in use.
pub const ENVIRONMENT_NOTED_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes of all environments of a user. Above the limit the least recently used ones are evicted.
pub const ENVIRONMENT_CACHE_SIZE_MAX: u64 = 20_000_000_000;
/// Pause between the tries of [`PROVISION_ATTEMPTS`]. It doubles.
pub const PROVISION_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of the lockfiles that a worker keeps, to create environments again.
pub const LOCKFILES_KEPT_SIZE_MAX: usize = 64 << 20;
/// How long a program waits while leftovers of builds are removed. The rest is removed at the next start.
pub const SWEEP_TIME_MAX: Duration = Duration::from_secs(1);
/// Bytes of a wheel that is built from a local dependency.
pub const WHEEL_SIZE_MAX: u64 = 4 << 30;
/// How long the end of a tool's stderr is awaited after its exit. A grandchild may have it open.
pub const TOOL_STDERR_TIMEOUT: Duration = Duration::from_secs(2);
/// Time in which uv must print its version.
pub const UV_VERSION_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for one step of creating an environment: resolving, downloading, installing.
pub const PROVISION_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a process waits for the lock of an environment: as long as another process may take to create it.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(1200);
/// The same while the process with the lock is stopped (SIGSTOP).
pub const LOCK_STOPPED_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an environment's `pyvenv.cfg`.
pub const PYVENV_SIZE_MAX: usize = 64 << 10;
/// How long after an environment was found broken and created again its import of pyarrow is not tested again.
pub const ENVIRONMENT_CHECK_PAUSE: Duration = Duration::from_secs(300);
/// How often a waiting process checks which process has the lock.
pub const LOCK_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time in which an interpreter must report whether a plugin's source is valid Python. It starts, which is
/// slow on a cold disk, and compiles the source.
pub const SYNTAX_CHECK_TIMEOUT: Duration = Duration::from_secs(60);
/// Files that a requirements file may include by `-r` and `-c`. More are probably a mistake.
pub const REQUIREMENTS_FILES_MAX: usize = 100;
/// Files of a local dependency that are compared with those of the last start. A dependency with more files,
/// or more bytes than [`LOCAL_SIZE_MAX`], is resolved and built at every start.
pub const LOCAL_FILES_MAX: usize = 20_000;
/// Bytes of such a dependency. See [`LOCAL_FILES_MAX`].
pub const LOCAL_SIZE_MAX: u64 = 1 << 30;
/// How long an unused wheel of a local dependency is kept. Jobs of another program may wait for it.
pub const WHEEL_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Last lines of a failed tool's output that its error contains.
pub const TOOL_LINES_KEPT: usize = 12;
/// Folders in a folder of programs that stay writable for plugins. Each is a mount of every fork server.
/// `/usr` has a dozen.
pub const FOLDERS_BESIDE_PROGRAMS_MAX: usize = 64;
/// Processes that are distinguished from strays: the children that a program had when it started, and their
/// descendants. Far more than the start script of a container has.
pub const INHERITED_MAX: usize = 10_000;
/// Bytes of one bridge frame. The shim of the reference system sends a whole table as one frame.
pub const BRIDGE_FRAME_SIZE_MAX: u32 = 1 << 30;
/// Rows of a batch. More are allowed up to one row per bit of its frame.
pub const BRIDGE_BATCH_ROWS_MAX: usize = 16 << 20;
/// Rows that are passed to a sink at a time.
pub const SINK_ROWS_MAX: usize = 1 << 20;
/// Bytes kept of a plugin's failure text.
pub const BRIDGE_TEXT_SIZE_MAX: usize = 1 << 20;
/// How often the resource usage of running jobs is measured.
pub const METER_INTERVAL: Duration = Duration::from_millis(700);
/// Messages of a fork server that are read at a time: more than all its jobs can cause.
pub const FORK_SERVER_MESSAGES_MAX: usize = 4 * WORKER_SLOTS_MAX + 64;
/// Symbolic links that are followed to a database that is created. The kernel has the same limit.
pub const LINKS_MAX: usize = 40;
/// Workers of the reference system that a sentinel remembers while they are disconnected.
pub const OLD_WORKERS_MAX: usize = 10_000;
/// Free bytes that a worker's own folder needs, or a quarter of a small file system. With less, a self-test
/// fails, and a plugin's failure whose message is about a full disk counts as the worker's. The output folder
/// needs as much after a job has failed because its disk was full.
pub const DISK_ROOM: u64 = 16 << 20;
/// With fewer free bytes than this, every failure of a plugin counts as the worker's, with any message.
pub const SCRATCH_ROOM_LEAST: u64 = 1 << 20;
/// A job with this many bytes in its working directory, or half of a small file system, has filled the file
/// system itself.
pub const SCRATCH_OWN_MAX: u64 = 64 << 20;
/// Longest time for measuring a job's working directory.
pub const METER_WALK_MAX: Duration = Duration::from_millis(500);
/// Processes of a job that are measured.
pub const METER_PROCESSES_MAX: u64 = 65_536;
/// Default limit of a job's processes at a time: more than a pool needs, and less than a system allows.
pub const JOB_PROCESSES: u64 = 1024;
/// Default limit of the bytes that a job prints. Only the last lines are kept.
pub const JOB_LOG_SIZE: u64 = 1 << 30;
/// Smallest limit of open files of a plugin process with which an interpreter can run.
pub const JOB_OPEN_FILES_MIN: u64 = 32;
/// Default limit of the worker's memory for one job's output. The largest bridge frame is half of it.
pub const JOB_BUFFER_SIZE: u64 = 2 << 30;
/// Smallest limit of the worker's memory for one job's output.
pub const JOB_BUFFER_SIZE_MIN: u64 = 64 << 20;
/// Largest cell that `--cell-max` may allow. A page of a Parquet file has less than 2 GiB.
pub const CELL_SIZE_MAX: u64 = 1984 << 20;
/// Bytes that a row and its frame may have in addition to such a cell.
pub const CELL_OVERHEAD: usize = 16 << 20;
/// Bytes of a value in a SQLite database (SQLITE_MAX_LENGTH).
pub const SQLITE_VALUE_MAX: usize = 1_000_000_000;
/// Memory of a column's encoder in a row group that is being written, without its data.
pub const COLUMN_MEMORY: usize = 24 << 10;
/// Memory of a column of a written row group until the file is finished: 0.8 KiB, and memory that the
/// allocator cannot reuse because of it.
pub const CHUNK_MEMORY: usize = 2 << 10;
/// Smallest average size of a column in a row group, including the encoder's memory for each value.
pub const CHUNK_SIZE_MIN: usize = 16 << 10;
/// Memory of a field of a schema, without its name and metadata.
pub const FIELD_MEMORY: usize = 2 << 10;
/// Copies of names and metadata while a file is written.
pub const SCHEMA_COPIES: usize = 10;
/// Fields of a batch, nested ones too.
pub const SCHEMA_FIELDS_MAX: usize = 1 << 17;
/// Bytes of a column's name.
pub const COLUMN_NAME_SIZE_MAX: usize = 64 << 10;
/// Bytes of a batch's schema: names and metadata.
pub const SCHEMA_SIZE_MAX: usize = 16 << 20;
/// Bytes of a row group's values in the memory of readers, which load whole row groups. pyarrow cannot read
/// nested strings of 2 GiB or more in a row group.
pub const ROW_GROUP_EXPANDED_MAX: usize = 512 << 20;
/// Memory of a row group that is being written. Above the limit it is flushed.
pub const ROW_GROUP_SIZE_MAX: usize = 16 << 20;
/// Rows of a row group.
pub const ROW_GROUP_ROWS_MAX: usize = 1 << 20;
/// Memory of all row groups of a job that are being written. Above the limit the largest is flushed.
pub const ROW_GROUPS_SIZE_MAX: usize = 64 << 20;
/// How far the clock of a file system may be behind the sentinel's clock, where the time of a file shows that
/// a worker of the reference system wrote it.
pub const OLD_PEER_CLOCK_SLACK: Duration = Duration::from_secs(60);
/// Bytes of a record of what a job has published: the names of its files, twice.
pub const RECORD_SIZE_MAX: u64 = 64 << 20;
/// Bytes of a file that are read at a time to hash it.
pub const CHECK_READ_SIZE: usize = 64 << 10;
/// Bytes of a file that contains one name.
pub const SHORT_FILE_SIZE_MAX: u64 = 4 << 10;
/// Files that `run` moves to another layout in one transaction. A job's files are moved together.
pub const MOVED_AT_ONCE: usize = 2000;
/// Bytes of a journal of such moves. It has two paths for each file, and all files of one further job.
pub const MOVES_SIZE_MAX: u64 = 256 << 20;
/// Topics of a job, configured or published.
pub const TOPICS_MAX: usize = 10_000;
/// Limit of open files that a worker requests from the kernel: one file for each topic.
pub const DESCRIPTORS_MAX: u64 = 1 << 20;
/// How far the limit of descriptors of a plugin process is below that of the worker.
pub const DESCRIPTORS_RESERVED: u64 = 1 << 10;
/// Descriptors that a worker opens in addition to those of its slots: event loop, waker, control socket,
/// signals, mounts, locks (also those of environments), the output folder, tools that create an environment, a
/// self-test, a settlement, a fork server or process that is being started.
pub const WORKER_DESCRIPTORS: u64 = 58;
/// Descriptors of a slot: its bridge's listener and connection, stdout and stderr, the pidfd, the plugin's
/// source, the lock of its environment (7); output of two topics and the staged rows of SQLite sinks (3);
/// while another job of the slot is published, a SQLite database, its journal, WAL index and staged rows,
/// folder and record (6).
pub const SLOT_DESCRIPTORS: u64 = 16;
/// Files of a job's topics that stay open between two batches. A job with more topics opens a file for each
/// write. [`SLOT_DESCRIPTORS`] includes them.
pub const FILES_OPEN_MAX: usize = 2;
/// Descriptors of a fork server: its socket and its pidfd. Each job may need one of its own.
pub const INTERPRETER_DESCRIPTORS: u64 = 2;
/// Bytes of staged rows up to which a SQLite sink permits readers of its database while it writes them. The
/// changed pages stay in memory while a reader is active.
pub const SQLITE_SHARED_SIZE_MAX: u64 = 64 << 20;
/// Size of a SQLite database up to which a table without an index on `_job_id` gets one while a job
/// publishes. That scans the table while the database is locked: seconds for this size.
pub const SQLITE_INDEXED_SIZE_MAX: u64 = 1 << 30;
/// Columns of a table of a SQLite database (SQLITE_MAX_COLUMN).
pub const TABLE_COLUMNS_MAX: usize = 2000;
/// How long a SQLite sink waits for its database while other programs have it locked.
pub const SQLITE_WAIT: Duration = Duration::from_secs(30);
/// The same for a database for which another job of the worker has already waited that long in vain.
pub const SQLITE_STUCK_WAIT: Duration = Duration::from_secs(1);
/// Databases for which a worker remembers that.
pub const SQLITE_STUCK_MAX: usize = 1000;
/// Mount points of sinks' folders that a worker remembers.
pub const MOUNTS_MAX: usize = 1000;
/// Time in which a writer that was ordered to stop must answer or do a step of its work. Otherwise the slot
/// gives the writer up, and is free. Longer than the wait for a SQLite database, which such a step may
/// contain.
pub const WRITER_TIMEOUT: Duration = Duration::from_secs(SQLITE_WAIT.as_secs() + 10);
/// How long storage of an input may not respond: when a job starts and ends, where the input is compared with
/// its file version, and when a command line reads it.
pub const INPUT_TIMEOUT: Duration = Duration::from_secs(30);
/// The same where the plugin has failed. A change of the input may be the reason.
pub const INPUT_CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for such a comparison after a plugin's failure. Nothing interrupts it.
pub const INPUT_CHECK_TIME_MAX: Duration = Duration::from_secs(60);
/// After this wait for an input's storage a command line reports it.
pub const INPUT_SILENCE_REPORTED: Duration = Duration::from_secs(5);
/// The same for the output folder of `casparian run`. A sleeping disk takes a few seconds.
pub const OUTPUT_SILENCE_REPORTED: Duration = Duration::from_secs(10);
/// Inputs of a command line whose storage did not respond, before the others fail at once.
pub const INPUTS_SILENT_MAX: usize = 10;
/// Threads of a worker that check inputs. Those whose storage does not respond stay until it does.
pub const INPUTS_WATCHED_MAX: usize = 2 * WORKER_SLOTS_MAX;
/// Time for one step of a publish. A step may be the whole transaction of a SQLite sink, which takes minutes
/// for a large table.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a publish waits for another job's publish into the same sink of mode `replace` or `error`.
pub const CLAIM_WAIT: Duration = Duration::from_secs(1);
/// How often the types of a Parquet sink's columns may change. For each change there is a file in
/// staging until the output is complete.
pub const SEGMENTS_MAX: usize = 64;
/// Bytes of Arrow data that are passed to the Parquet writer at a time.
pub const WRITE_SLICE_SIZE: usize = 4 << 20;
/// Reads of one plugin process's log pipe per event-loop iteration.
pub const LOG_READS_PER_ITERATION: usize = 16;
/// How often [`LOG_READS_PER_ITERATION`] reads are repeated after a plugin process has exited.
pub const LOG_ITERATIONS_AT_EXIT: usize = 16;
/// Bytes read from one plugin process's bridge per event-loop iteration.
pub const BRIDGE_BYTES_PER_ITERATION: usize = 4 << 20;
/// First pause before the creation of a failed environment is tried again. It doubles.
pub const ENVIRONMENT_RETRY_AFTER: Duration = Duration::from_secs(10);
/// Longest pause before an environment is tried again.
pub const ENVIRONMENT_RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// How often a worker's environment may change from failed to ready, each time within [`ENVIRONMENT_FLIP`],
/// before further changes are ignored. Each change is a write to the database.
pub const ENVIRONMENT_FLIPS_MAX: u32 = 8;
/// See [`ENVIRONMENT_FLIPS_MAX`].
pub const ENVIRONMENT_FLIP: Duration = Duration::from_secs(5);
/// Warm fork servers of one worker. Each has its imports in memory.
pub const FORK_SERVERS_MAX: usize = 8;
/// Plugin versions whose sources a worker keeps in memory.
pub const PLUGIN_VERSIONS_MAX: usize = 256;
/// Attempts that a worker may hold whose environments are being created.
pub const WAITING_MAX: usize = 256;
/// An environment whose creation takes longer than this is reported to the sentinel, so that the worker gets
/// other jobs meanwhile.
pub const ENVIRONMENT_SLOW: Duration = Duration::from_secs(1);
/// Jobs that a worker holds beyond its slots. A sentinel of the reference system may send more jobs than the
/// worker has slots.
pub const BACKLOG_MAX: usize = 1024;
/// Default time-out of a job.
pub const JOB_TIMEOUT: Duration = Duration::from_secs(3600);
/// Longest pause between a worker's HEARTBEATs; it is a quarter of a lease.
pub const WORKER_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Shortest pause between a worker's HEARTBEATs.
pub const WORKER_HEARTBEAT_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Requests without an answer that a worker remembers.
pub const UNANSWERED_REQUESTS_MAX: usize = 1000;
/// A receipt without an acknowledgement is sent again after this time, even on a working connection.
pub const RECEIPT_RESEND_AFTER: Duration = Duration::from_secs(10);
/// Bytes of a receipt on the wire. A larger one is sent without its list of files.
pub const RECEIPT_SIZE_MAX: usize = 8 << 20;
/// How long a worker that stops tries to send its queued messages.
pub const LINGER: Duration = Duration::from_secs(1);
/// Default port of a sentinel.
pub const PORT_DEFAULT: u16 = 5555;
