//! Every bound of the system, with its reason.
//!
//! A bound that an operator may change is an option whose default stands here.

use std::time::{Duration, Instant};

/// `now + wait`, or an instant far beyond any wait where that cannot be said.
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait.min(WAIT_MAX)).unwrap_or(now)
}

/// Longest wait anybody can mean.
const WAIT_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Bytes of one ZMTP frame; a plugin's source and lockfile travel in one frame.
pub const ZMTP_FRAME_SIZE_MAX: u64 = 64 << 20;
/// Bytes of one ZMTP message.
pub const ZMTP_MESSAGE_SIZE_MAX: u64 = 64 << 20;
/// Frames of one ZMTP message; the control protocol needs two.
pub const ZMTP_FRAMES_MAX: usize = 4096;
/// Bytes of one ZMTP command: READY with metadata is the largest.
pub const ZMTP_COMMAND_SIZE_MAX: u64 = 64 << 10;
/// Bytes of one command of the handshake, from unauthenticated peers: twice what our own
/// can take.
#[cfg(not(fuzzing))]
pub const ZMTP_HANDSHAKE_COMMAND_SIZE_MAX: u64 = 10 << 10;
/// So small that inputs reach it.
#[cfg(fuzzing)]
pub const ZMTP_HANDSHAKE_COMMAND_SIZE_MAX: u64 = 1 << 10;
/// Bytes of commands between the frames of one message: a PING a second for a day.
#[cfg(not(fuzzing))]
pub const ZMTP_COMMANDS_IN_MESSAGE_SIZE_MAX: usize = 1 << 20;
/// So small that inputs reach it.
#[cfg(fuzzing)]
pub const ZMTP_COMMANDS_IN_MESSAGE_SIZE_MAX: usize = 1 << 10;

/// Bytes of application properties kept of a peer's metadata.
pub const METADATA_KEPT_MAX: usize = 4 << 10;

/// Bytes of a file with one key.
pub const KEY_FILE_SIZE_MAX: u64 = 4 << 10;
/// The comments that begin files of secret keys: of CURVE, and of publishers (Ed25519).
pub const SECRET_KEY_MARKS: [&str; 2] = [
    "# CURVE secret key of Casparian",
    "# Ed25519 secret key of a Casparian publisher",
];
/// Bytes of a list of authorized keys: some ten thousand lines.
pub const AUTHORIZED_KEYS_SIZE_MAX: u64 = 1 << 20;
/// Files in a protected folder of which secret keys and databases are hidden from plugins.
pub const PROTECTED_FILES_MAX: usize = 1_000;
/// Sentinels of a user whose key files its workers keep plugins from.
pub const KEY_NOTES_MAX: usize = 256;
/// Age at which a file of them that was not finished is removed.
pub const KEY_NOTE_UNFINISHED_MAX: Duration = Duration::from_secs(60);
/// Bytes of the paths of one sentinel's key files.
pub const KEY_NOTE_SIZE_MAX: u64 = 64 << 10;
/// How often the list of authorized keys is read for changes.
pub const KEY_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// First receive buffer of a connection; an idle one holds none.
pub const RECEIVE_BUFFER_SIZE_MIN: usize = 512;
/// Read-ahead of a busy connection; a larger message grows it for as long as it lasts.
pub const RECEIVE_BUFFER_SIZE_MAX: usize = 256 << 10;
/// Read-ahead during the handshake.
pub const HANDSHAKE_READ_AHEAD: usize = 4 << 10;

/// First chunk of a send queue.
pub const SEND_CHUNK_SIZE_MIN: usize = 4 << 10;
/// Further chunks of a send queue.
pub const SEND_CHUNK_SIZE_MAX: usize = 64 << 10;

/// Bytes of a CURVE connection that are sealed ahead of the kernel taking them; one message
/// more may stand behind them.
pub const SEALED_BYTES_MAX: usize = 128 << 10;

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
/// Memory of a socket for what its peers send.
pub const RECEIVE_TOTAL_BYTES: u64 = 1 << 30;
/// Log lines about connections that a socket writes per second.
pub const SOCKET_LOG_LINES_PER_SECOND: u32 = 10;
/// Queued bytes at which a send writes at once instead of waiting for the flush.
pub const FLUSH_BYTES: u64 = 64 << 10;
/// Slices handed to one writev.
pub const SLICES_PER_WRITE: usize = 16;
/// Bytes that the kernel holds of a tcp connection without having sent them
/// (`TCP_NOTSENT_LOWAT`); what it has sent and not had acknowledged comes on top. Half as many
/// cost a third of the throughput of 4 KiB messages on loopback.
pub const UNSENT_BYTES: u32 = 512 << 10;
/// Reads of one call to receive, so that a flood leaves time for everything else.
pub const READS_PER_RECEIVE: usize = 64;
/// Connections taken from a listener per turn.
pub const ACCEPTS_PER_TURN: usize = 64;
/// Reads of the system's tables of sockets, to find the user of a local connection.
pub const OWNER_READS_MAX: usize = 3;
/// Connections of a private ipc socket that wait to be accepted; the system may allow fewer.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Pause of a listener after an error such as EMFILE.
pub const ACCEPT_REST: Duration = Duration::from_millis(200);
/// Buffers of a connection that was silent for this long are given back.
pub const IDLE_MEMORY_AFTER: Duration = Duration::from_secs(5);
/// Connections of a socket.
pub const CONNECTIONS_MAX: usize = 65_536;
/// Connections of a socket whose handshake is not done.
pub const HANDSHAKES_MAX: usize = 16_384;
/// The same for the sentinel of a run: its only peer is its worker, with which it shares descriptors.
pub const RUN_HANDSHAKES_MAX: usize = 16;
/// Connect and handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that may be lost within one message before it is dropped: a peer that does not
/// take it, for its size say, would never get what is queued behind it.
pub const MESSAGE_CUTS_MAX: u32 = 10;
/// Shortest pause before a reconnect.
pub const RECONNECT_INTERVAL_MIN: Duration = Duration::from_millis(1);
/// First pause before a reconnect.
pub const RECONNECT_INTERVAL: Duration = Duration::from_millis(100);
/// Longest pause before a reconnect.
pub const RECONNECT_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// Lookups of host names at a time, in the process.
pub const LOOKUPS_MAX: usize = 32;
/// Pause of a peer whose host cannot be resolved yet.
pub const LOOKUP_PAUSE: Duration = Duration::from_millis(100);
/// Unread lifecycle events of a socket.
pub const SOCKET_EVENTS_MAX: usize = 4096;

/// Rows of its waiting jobs that `casparian run` compares with the queue in a poll, once a second.
pub const WAITING_PER_LOOK: usize = 10_000;

/// Messages a sentinel or worker takes per turn of its loop.
pub const MESSAGES_PER_TURN: usize = 4096;
/// Bound of a lease. A worker asks again every quarter of it.
pub const LEASE: Duration = Duration::from_secs(10);
/// Seconds of the longest lease that an operator may set: a day.
pub const LEASE_SECONDS_MAX: i64 = 86_400;
/// Added to a lease before its attempt is given away: how far two clocks may drift apart in a
/// lease.
pub const LEASE_MARGIN: Duration = Duration::from_secs(2);
/// A worker must end an attempt within this time, or it loses it: far above [`JOB_TIMEOUT`], because
/// workers of the old system have no bound on a job.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(86_400);
/// The same where the workers are our own, which end each job.
pub const ATTEMPT_TIMEOUT_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);
/// How long a worker may be disconnected before it is reported offline: longer than a reconnect
/// takes.
pub const WORKER_GRACE: Duration = Duration::from_secs(3);
/// How often connected workers are noted in the database as seen.
pub const SEEN_INTERVAL: Duration = Duration::from_secs(10);
/// A connected worker that was noted as seen longer ago has no sentinel, where the sentinel's lock
/// cannot be polled. Three times [`SEEN_INTERVAL`], for a sentinel may wait for its database.
pub const SEEN_AGE_MAX: Duration = Duration::from_secs(30);
/// How often a sentinel tries its lock: programs that ask for a sentinel hold it for microseconds.
pub const LOCK_TRIES: usize = 5;
/// The pause between these.
pub const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Changes that wait for a database that fails; at the limit nothing more is read.
pub const CHANGES_MAX: usize = 100_000;
/// A second worker that asks for a connected worker's ID waits this long for its sign of life.
pub const CONTENDER_WAIT: Duration = Duration::from_secs(2);
/// Second workers that wait at a time.
pub const CONTENDERS_MAX: usize = 1000;
/// Attempts that a worker may hold per slot: running, and waiting for exclusive sinks.
pub const HELD_PER_SLOT_MAX: usize = 4;
/// Exclusive sinks of one attempt.
pub const EXCLUSIVE_SINKS_MAX: usize = 1000;
/// Attempts per exclusive sink whose workers did not report an end, and sinks with such.
pub const UNREPORTED_MAX: usize = 1000;
/// Bytes of a worker's reason for taking no jobs.
pub const TROUBLE_SIZE_MAX: usize = 1000;
/// Bytes of the reason that a worker reports for avoiding an environment.
pub const ENVIRONMENT_REASON_SIZE_MAX: usize = 500;
/// How often a job may lose its worker; more is most likely the job's own doing.
pub const RETRIES_MAX: u32 = 3;
/// Wait for running jobs at a stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// ZMTP PING between sentinel and worker.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Silence that ends a connection between sentinel and worker.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(15);
/// How often other programs' commits are polled for; rows they insert are found within 50 ms.
pub const QUEUE_LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How often leases are checked.
pub const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);
/// A sentinel that has not run for so long, its own work apart, was stopped or suspended, or its
/// disk was: that time does not count for leases, because the requests of workers waited meanwhile.
pub const AWAY_AFTER: Duration = Duration::from_millis(2500);
/// How often RUNNING rows are compared with what is held, when no other program has committed.
pub const HOLDS_LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Leases ended per transaction.
pub const EXPIRED_PER_TURN: usize = 1000;
/// Held attempts that an iteration compares with their rows, and RUNNING rows with what is held.
pub const HOLDS_PER_TURN: usize = 1000;
/// Ends without a receipt that are logged one by one, of those that come together.
pub const ENDS_LOGGED_MAX: usize = 20;
/// Ended jobs whose output is brought in line with their rows, per transaction.
pub const SETTLED_PER_TURN: usize = 64;
/// Such jobs that workers have at a time: a worker does one after the other.
pub const SETTLING_MAX: usize = 256;
/// Bytes of such jobs' settlements that workers have at a time, in JSON; the last one may exceed it.
/// So an answer with all of them can be sent.
pub const SETTLING_SIZE_MAX: usize = 16 << 20;
/// How long a worker may take for one before another may be asked: longer than a busy disk needs,
/// and each attempt bars the one before.
pub const SETTLE_WAIT: Duration = Duration::from_secs(60);
/// Different plugins with queued jobs that one transaction considers; the next one goes on behind
/// them. Each costs a jump in an index, and a claim for each worker that may run it.
pub const QUEUED_PLUGINS_PER_TURN: usize = 1000;
/// Plugins that a sentinel logs because their jobs wait.
pub const WAITING_LOGGED_MAX: usize = 1000;
/// Plugins whose code, or whose part of DISPATCH, a sentinel keeps in memory.
pub const PLUGINS_CACHED_MAX: usize = 10_000;
/// How long a sentinel's statement waits for another program's transaction: answers to workers
/// wait as long.
pub const STORE_BUSY_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a statement waits for another program's transaction where nothing tries again.
pub const STORE_OPEN_WAIT: Duration = Duration::from_secs(5);
/// Pause before a sentinel opens its database again, when it cannot be opened as it starts.
pub const STORE_OPEN_PAUSE: Duration = Duration::from_secs(2);
/// Pause before a database is changed to WAL again that another program has locked.
pub const WAL_CHANGE_PAUSE: Duration = Duration::from_millis(5);
/// Bytes of a database's absolute path: SQLite has 512, of which the name of the journal needs 8 more
/// than that of the database.
pub const SQLITE_PATH_SIZE_MAX: usize = 504;
/// First pause after a failed transaction; it doubles.
pub const STORE_RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause after a failed transaction.
pub const STORE_RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often a database that goes on failing is logged.
pub const STORE_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Names in one IDENTIFY.
pub const CAPABILITIES_MAX: usize = 10_000;
/// Bytes of these names: the database keeps them of each worker that it remembers.
pub const CAPABILITIES_SIZE_MAX: usize = 256 << 10;
/// Bytes of a message that a worker sends, receipts apart: lists of what it runs and of environments.
pub const WORKER_MESSAGE_SIZE_MAX: usize = 1 << 20;
/// Bytes of messages that a sentinel takes per iteration of its loop.
pub const MESSAGE_BYTES_PER_TURN: usize = 32 << 20;
/// Attempts that a worker lists: what it holds, and what it has not been acknowledged.
pub const LISTED_ATTEMPTS_MAX: usize = 16_384;
/// Attempts that one answer asks a worker to stop, beside its own.
pub const ABORTS_MAX: usize = 4096;
/// Metrics of a receipt; our own worker has some thirty.
pub const METRICS_MAX: usize = 256;
/// Fields of an artifact of a receipt; our own worker has six.
pub const ARTIFACT_FIELDS_MAX: usize = 32;
/// Bytes of such a field: a URI with a path of 4096 bytes, escaped.
pub const ARTIFACT_TEXT_SIZE_MAX: usize = 16 << 10;
/// Lists and maps within each other in a Parquet file: the time that DuckDB takes for such a type doubles with
/// each, and is about a second here.
pub const LIST_LEVELS_MAX: usize = 20;
/// Lists, maps and structs within each other there: pyarrow opens no file with 100 levels of Parquet, of which a list
/// has two.
pub const TYPE_LEVELS_MAX: usize = 48;
/// Bytes of the names and types of a table's columns in a receipt.
pub const TABLE_COLUMNS_SIZE_MAX: usize = 8 << 10;
/// Bytes of those of all tables of a job.
pub const TABLES_COLUMNS_SIZE_MAX: usize = 256 << 10;
const _: () = assert!(TABLE_COLUMNS_SIZE_MAX < ARTIFACT_TEXT_SIZE_MAX);
/// Bytes of receipts that wait for a transaction; at the limit nothing more is read.
pub const RECEIPTS_SIZE_MAX: usize = 64 << 20;
/// Slots of one worker.
pub const WORKER_SLOTS_MAX: usize = 1024;
/// Workers that a database remembers; of more, those that have gone are forgotten.
pub const WORKER_SESSIONS_MAX: i64 = 10_000;
/// How long a database remembers a worker that has gone.
pub const WORKER_SESSION_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Retries of a job after failures of environments and workers, at the least.
pub const INFRA_RETRIES_MAX: u32 = 10;
/// Attempts of a job in a row that are followed by another because the input's content was not that of
/// the file version. The pauses between them add up to 7 s.
pub const INPUT_MOVES_MAX: i64 = 4;
/// A content hash of the catalogue that workers receive: one of ours has 64 hex digits.
pub const CONTENT_HASH_SIZE_MAX: usize = 256;
/// Retries of a job whose input changes while it runs: it may change for ever.
pub const INPUT_RETRIES_MAX: u32 = 3;
/// Retries of a job whose sink's database others have locked: with their pauses, which add up to more than an hour,
/// they outlast a job of the default time-out that reads it.
pub const LOCKED_RETRIES_MAX: u32 = 24;
/// Retries of a job whose plugin process others have killed while no other job ran.
pub const KILLED_RETRIES_MAX: u32 = 2;
/// After so many losses of workers that held other jobs too a job runs alone on its worker: if it
/// is what ends them, its neighbours are spared and it is found out. One loss may be a restart.
pub const SHARED_LOSSES_TOGETHER: i64 = 2;
/// Losses of workers that held other jobs too, before a job is given up.
pub const SHARED_LOSSES_MAX: i64 = 20;
/// Times in a row that a job may be given back because its worker was stopped while it ran. More
/// count as lost workers, because the job may be what stops them. A long job is moved on by every
/// stop: when a thousand workers are restarted one by one, some seven times.
pub const GIVEN_BACK_MAX: i64 = 10;
/// First pause before a job is retried; it doubles with each retry.
pub const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause before a job is retried, without the jitter of a fifth.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(300);
/// Rows that cannot be used, which one transaction ends or skips: the others go on meanwhile.
pub const UNUSABLE_ROWS_PER_TRANSACTION: usize = 250;
/// Pause after such a transaction, so that other programs can write.
pub const BOUNDED_PAUSE: Duration = Duration::from_millis(25);
/// Rows that are passed over because code in the schema refuses their changes; of more, all are
/// tried again.
pub const REFUSED_ROWS_MAX: usize = 250_000;
/// For how long they are at first; the pause doubles while some are refused again.
pub const REFUSED_ROWS_PAUSE: Duration = Duration::from_secs(10);
/// For how long they are at most.
pub const REFUSED_ROWS_PAUSE_MAX: Duration = Duration::from_secs(160);
/// Of them so many are tried again at a time, once a second: the others are not held up.
pub const FORGIVEN_PER_TURN: usize = 1000;
/// Attempts of a job in a row whose row another program has changed while they ran; from the next one on
/// the job is claimed again after a pause only.
pub const STRAY_ATTEMPTS_MAX: u32 = 2;
/// Rows that roll back the transaction of one iteration, before it ends without it.
pub const ROLLBACKS_PER_ITERATION: usize = 32;
/// How often the pause of a job doubles that waits for the output of another job: up to 32 s.
pub const WAIT_DOUBLINGS_MAX: i64 = 5;
/// How often a job waits for the settlement of another one that has ended: some ten minutes.
pub const UNSETTLED_WAITS_MAX: i64 = 20;
/// Rows whose retry is due, which one transaction queues.
pub const WOKEN_PER_TRANSACTION: usize = 1000;
/// Ended attempts that the database keeps of a job.
pub const ATTEMPTS_KEPT: i64 = 100;
/// Earlier attempts in a job's DISPATCH: more than the database keeps, unless
/// another program has added rows.
pub const HISTORY_MAX: usize = 1000;
/// Last lines of a plugin that are kept of each attempt.
pub const ATTEMPT_LOG_LINES: usize = 50;
/// Bytes of a job's `config_overrides`.
pub const OVERRIDES_SIZE_MAX: usize = 1 << 20;
/// Bytes of a source or a lockfile in the database: in JSON either fits into one frame.
pub const SOURCE_SIZE_MAX: usize = 8 << 20;
/// Bytes of a source that is deployed: each DISPATCH contains it.
pub const DEPLOY_SOURCE_SIZE_MAX: usize = 8 << 20;
/// Bytes of a lockfile that is deployed: each PREPARE_ENV contains it.
pub const DEPLOY_LOCKFILE_SIZE_MAX: usize = 4 << 20;
/// Bytes of both together.
pub const DEPLOY_SIZE_MAX: usize = 10 << 20;
const _: () = assert!(DEPLOY_SOURCE_SIZE_MAX <= SOURCE_SIZE_MAX);
const _: () = assert!(DEPLOY_LOCKFILE_SIZE_MAX <= SOURCE_SIZE_MAX);
// A byte takes six in JSON at most (`\u0001`).
const _: () = assert!((6 * DEPLOY_SIZE_MAX + (1 << 20)) as u64 <= ZMTP_FRAME_SIZE_MAX);
/// Bytes of the files of a plugin that is a folder. They travel in its source as base64, which takes four
/// bytes for three, beside the list of their paths.
pub const FOLDER_SIZE_MAX: usize = 5 << 20;
/// Files of a plugin that is a folder.
pub const FOLDER_FILES_MAX: usize = 2000;
/// Bytes of the paths of these files together.
pub const FOLDER_PATHS_SIZE_MAX: usize = 256 << 10;
/// Folders above each of these files, within the plugin.
pub const FOLDER_DEPTH_MAX: usize = 32;
/// Entries of the folder that are listed, including those that are left out.
pub const FOLDER_ENTRIES_MAX: usize = 100_000;
// Lines of base64 have three bytes more; a path without control characters has two bytes for one in JSON at
// most, beside its keys.
const _: () = assert!(
    FOLDER_SIZE_MAX / 3 * 4
        + FOLDER_SIZE_MAX / 256
        + 2 * FOLDER_PATHS_SIZE_MAX
        + 64 * FOLDER_FILES_MAX
        <= DEPLOY_SOURCE_SIZE_MAX
);
/// Bytes of a plugin's default parameters, and of a job's own. Both together reach the plugin process in
/// one variable, which the kernel bounds to 128 KiB, and by one message of a local socket.
pub const PARAMETERS_SIZE_MAX: usize = 32 << 10;
/// Sinks that `cf_topic_config` may have for one plugin, and `config_overrides` for one job.
pub const SINKS_MAX: usize = 10_000;
/// Files that `submit` queues in one transaction.
pub const SUBMIT_BATCH: usize = 500;
/// Environments a sentinel remembers per worker, and a worker knows at a time.
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
/// The same of a sink's URI.
pub const MANIFEST_URI_SIZE_MAX: usize = 1000;
/// The same in number of sinks, and of subscriptions.
pub const MANIFEST_ENTRIES_MAX: usize = 1000;
/// Bytes of deployments that a sentinel takes per iteration of its loop; the last one may exceed it. They are
/// hashed and parsed: a debug build needs a second for the largest.
pub const DEPLOY_BYTES_PER_TURN: usize = 1 << 20;
/// Bytes of sources and lockfiles of deployments that wait for a transaction; the last one may
/// exceed it.
pub const DEPLOYS_WAITING_SIZE_MAX: usize = 64 << 20;
/// What such a deployment counts beside its source and lockfile.
pub const DEPLOY_OVERHEAD: usize = 64 << 10;
/// Pause between log lines about deployments that were refused.
pub const DEPLOY_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of the reason why a deployment is refused.
pub const DEPLOY_REASON_SIZE_MAX: usize = 2000;
/// Wait of `casparian deploy --connect` for the sentinel's answer.
pub const DEPLOY_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for a connection that is not there.
pub const DEPLOY_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Keys of one trusted publisher: a signature is compared with each.
pub const PUBLISHER_KEYS_MAX: usize = 16;
/// Plugins, and sinks of all plugins, that a sentinel reads at once to announce changes to workers.
pub const DEPLOYMENTS_MAX: usize = 10_000;
/// How often that is done when no other program has changed the database.
pub const DEPLOYMENTS_LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Environments that workers prepare before there are jobs; others are created for their first job.
pub const ENVIRONMENTS_WANTED_MAX: usize = 64;
/// How often a worker checks which of its environments exist.
pub const ENVIRONMENTS_LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Environments that a worker is asked to prepare at once, before jobs need them.
pub const PREPARED_AT_ONCE: usize = 2;
/// How long a worker that does not answer counts as preparing an environment.
pub const PREPARE_WAIT: Duration = Duration::from_secs(60);
/// Lockfiles that leave at once, of up to [`SOURCE_SIZE_MAX`] each.
pub const PREPARES_PER_LOOK: usize = 16;
/// Lists in lists of a plugin's MANIFEST.
pub const MANIFEST_DEPTH_MAX: usize = 32;
/// Bytes of a log record's message: what it contains comes from others, and a disk holds it for
/// long.
pub const LOG_MESSAGE_SIZE_MAX: usize = 4 << 10;
/// Bytes of one message on stderr: the last lines of a failed tool, or a backtrace, are the longest.
pub const STDERR_MESSAGE_SIZE_MAX: usize = 64 << 10;
/// Characters of a cell of a table for people: the longest paths there are in use have some hundred.
pub const TABLE_CELL_MAX: usize = 500;
/// Log lines that one place in the source writes each second, debug lines apart.
pub const LOG_LINES_PER_SECOND: u32 = 20;
/// Bytes that are written to stderr at a time: a pipe that polls as writable takes so many
/// (PIPE_BUF) without a wait.
pub const STDERR_PART_SIZE: usize = 4 << 10;
/// How long a program's last line waits for the reader of stderr.
pub const LAST_LINE_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of the URIs in a row's `published`, as JSON: those of the largest receipt.
pub const PUBLISHED_SIZE_MAX: usize = RECEIPT_SIZE_MAX;
const _: () = assert!((SETTLING_SIZE_MAX + 2 * PUBLISHED_SIZE_MAX) as u64 <= ZMTP_MESSAGE_SIZE_MAX);
/// Bytes of a name that a peer chose.
pub const NAME_SIZE_MAX: usize = 255;
/// Bytes of an error message in a receipt.
pub const ERROR_TEXT_SIZE_MAX: usize = 16 << 10;
/// Bytes of a plugin's last lines in a receipt.
pub const LOG_TAIL_SIZE_MAX: usize = 16 << 10;

/// A plugin process must have connected.
pub const PLUGIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// A plugin process must have exited after its end of output.
pub const PLUGIN_EXIT_TIMEOUT: Duration = Duration::from_secs(10);
/// A plugin process that failed gets this long to exit by itself, so that its last words are kept.
pub const PLUGIN_LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);

/// The bridge must be over after its process has exited, or have brought bytes: what the process
/// sent is in the kernel already, and only another process that holds the bridge keeps it open.
pub const BRIDGE_DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// A plugin process that is killed must be gone; one that is not is given up, so that its slot is
/// free.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// A warm interpreter must report the exit of a child that the kernel shows as exited.
pub const WARM_REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// A warm interpreter must have done its imports; large packages on cold disks take a minute.
pub const WARM_START_TIMEOUT: Duration = Duration::from_secs(120);
/// A warm interpreter must answer a request or a ping.
pub const WARM_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// What a warm interpreter gets beyond a deadline, for answers that a pause of the worker kept.
pub const WARM_REPRIEVE: Duration = Duration::from_secs(2);
/// How often a warm interpreter with jobs is pinged.
pub const WARM_PING_INTERVAL: Duration = Duration::from_secs(5);
/// First pause before a warm interpreter that failed twice in a row is started again; it doubles.
pub const WARM_RESTART_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause before a warm interpreter is started again.
pub const WARM_RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often a warm interpreter may die with one job alone in it, before the job is to blame.
pub const WARM_DEATHS_MAX: u32 = 2;
/// Jobs that a worker remembers because an interpreter died while they ran.
pub const SUSPECTS_MAX: usize = 1024;
/// Pause after which a worker polls again for killed processes that have not ended; it doubles.
pub const LEFTOVERS_INTERVAL: Duration = Duration::from_millis(20);
/// Longest pause before it polls again.
pub const LEFTOVERS_INTERVAL_MAX: Duration = Duration::from_secs(2);
/// How long a worker that ends waits for its fork servers to kill what plugins have started, and for
/// what lost ones have left.
pub const LEFTOVERS_WAIT: Duration = Duration::from_secs(2);
/// Killed processes that have not ended, that a worker watches.
pub const LEFTOVERS_MAX: usize = 256;
/// Connections taken from a bridge's listener per call.
pub const BRIDGE_ACCEPTS_PER_CALL: usize = 16;
/// How often a running plugin's memory is sampled at most.
pub const RSS_SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Levels of folders that are removed of one job.
pub const CLEANER_ROUNDS_MAX: usize = 1 << 20;
/// Removing the folders of the last jobs when a worker stops; the next worker removes the rest.
pub const CLEAN_AT_STOP: Duration = Duration::from_secs(2);
/// Failures of the worker's own in a row, after which it takes no jobs.
pub const TROUBLE_FAILURES: u32 = 3;
/// First pause before a worker in trouble tests itself; it doubles.
pub const SELF_TEST_PAUSE_MIN: Duration = Duration::from_secs(1);
/// A job that a healed worker tries and that has run for so long is likely to end well: others are
/// tried beside it.
pub const TRIAL_TIME: Duration = Duration::from_secs(10);
/// Longest pause before a worker in trouble tests itself.
pub const SELF_TEST_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Tries to make an environment before jobs that need it fail.
pub const PROVISION_ATTEMPTS: u32 = 3;
/// How long a worker waits for another program that checks or evicts an environment.
pub const EVICTION_PAUSE: Duration = Duration::from_millis(10);
/// Environments that a worker creates at once. One whose tool hangs must not keep the others waiting.
pub const ENVIRONMENTS_MADE_AT_ONCE: usize = 4;
/// How long an environment that nothing runs in stays locked, so that it is not locked for each job.
pub const ENVIRONMENT_IDLE: Duration = Duration::from_secs(10);
/// How often an environment that is in use is noted as used.
pub const ENVIRONMENT_NOTED_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes that the environments of a home may have before those not used for longest go.
pub const ENVIRONMENT_CACHE_SIZE_MAX: u64 = 20_000_000_000;
/// Pause between these tries; it doubles.
pub const PROVISION_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of the lockfiles that a worker keeps, to make environments again.
pub const LOCKFILES_KEPT_SIZE_MAX: usize = 64 << 20;
/// What removing leftovers of builds may take where something waits for it; the rest is removed at the next
/// start.
pub const SWEEP_TIME_MAX: Duration = Duration::from_secs(1);
/// Bytes of a wheel that is built of a local dependency.
pub const WHEEL_SIZE_MAX: u64 = 4 << 30;
/// What a tool's stderr gets to close after its exit; a grandchild may hold it.
pub const TOOL_STDERR_TIMEOUT: Duration = Duration::from_secs(2);
/// What uv gets to print its version.
pub const UV_VERSION_TIMEOUT: Duration = Duration::from_secs(60);
/// One step of making an environment: resolving, downloading, installing.
pub const PROVISION_TIMEOUT: Duration = Duration::from_secs(600);
/// How long the lock of an environment is waited for: as long as others may take to make it.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(1200);
/// How long, while the process that holds it is stopped (SIGSTOP): it makes nothing.
pub const LOCK_STOPPED_TIMEOUT: Duration = Duration::from_secs(10);
/// How often its holder is polled.
pub const LOCK_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// An interpreter must have said whether a plugin's source is Python: it starts, which takes a while
/// on a cold disk, and compiles the source.
pub const SYNTAX_CHECK_TIMEOUT: Duration = Duration::from_secs(60);
/// Files that a requirements file may lead to by `-r` and `-c`: more are a mistake.
pub const REQUIREMENTS_FILES_MAX: usize = 100;
/// Files and bytes of a local dependency that are compared with those of before. A larger one is resolved and
/// built at every start.
pub const LOCAL_FILES_MAX: usize = 20_000;
/// See [`LOCAL_FILES_MAX`].
pub const LOCAL_SIZE_MAX: u64 = 1 << 30;
/// How long a wheel of a local dependency is kept that no run has used: jobs of another program may wait for it.
pub const WHEEL_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Last lines of a failed tool that its error carries.
pub const TOOL_LINES_KEPT: usize = 12;
/// Folders in a folder of programs that stay writable for plugins; each is a mount for interpreters. `/usr` has a dozen.
pub const FOLDERS_BESIDE_PROGRAMS_MAX: usize = 64;
/// Descendants of the processes that a program had at its start which are distinguished from strays: far more than a container's
/// start script has.
pub const INHERITED_MAX: usize = 10_000;
/// Bytes of one bridge frame; the old shim sends a whole table as one.
pub const BRIDGE_FRAME_SIZE_MAX: u32 = 1 << 30;
/// Rows of a batch, unless its bytes could hold more as bits.
pub const BRIDGE_BATCH_ROWS_MAX: usize = 16 << 20;
/// Rows that a sink is given at a time.
pub const SINK_ROWS_MAX: usize = 1 << 20;
/// Bytes kept of a plugin's failure text.
pub const BRIDGE_TEXT_SIZE_MAX: usize = 1 << 20;
/// How often is measured what running jobs use.
pub const METER_INTERVAL: Duration = Duration::from_millis(700);
/// Messages of a warm interpreter that are read at a time: more than all its jobs can be the reason for.
pub const WARM_MESSAGES_MAX: usize = 4 * WORKER_SLOTS_MAX + 64;
/// Symbolic links in a row to a database that is created, as for the kernel.
pub const LINKS_MAX: usize = 40;
/// Workers of the old system that a sentinel remembers while they are away.
pub const OLD_WORKERS_MAX: usize = 10_000;
/// Bytes that a worker's own folder needs free, or a quarter of a smaller file system: with less a self-test
/// fails, and a plugin that names a full disk has failed for it. The output folder needs as much once a job
/// has failed because its disk was full.
pub const DISK_ROOM: u64 = 16 << 20;
/// With less than so much any plugin may have failed for it, whatever it names.
pub const SCRATCH_ROOM_LEAST: u64 = 1 << 20;
/// A job that has so much in its working directory, or half of a smaller file system, has filled it itself.
pub const SCRATCH_OWN_MAX: u64 = 64 << 20;
/// Longest walk over a job's working directory.
pub const METER_WALK_MAX: Duration = Duration::from_millis(500);
/// Processes of a job that are measured.
pub const METER_PROCESSES_MAX: u64 = 65_536;
/// Processes of a job at a time, unless an option says otherwise: more than a pool needs, and less
/// than a system has.
pub const JOB_PROCESSES: u64 = 1024;
/// Bytes that a job prints, unless an option says otherwise: only the last lines are kept.
pub const JOB_LOG_SIZE: u64 = 1 << 30;
/// Least limit of open files of a plugin process: an interpreter has to run.
pub const JOB_OPEN_FILES_MIN: u64 = 32;
/// Memory of the worker for one job's output, unless an option says otherwise: a frame of the old
/// shim is half of it.
pub const JOB_BUFFER_SIZE: u64 = 2 << 30;
/// Least memory of the worker for one job's output.
pub const JOB_BUFFER_SIZE_MIN: u64 = 64 << 20;
/// Largest cell that `--cell-max` may allow: a page of a Parquet file has less than 2 GiB.
pub const CELL_SIZE_MAX: u64 = 1984 << 20;
/// Bytes that a row and its frame may have beside such a cell.
pub const CELL_OVERHEAD: usize = 16 << 20;
/// Bytes of a value in a SQLite database (SQLITE_MAX_LENGTH).
pub const SQLITE_VALUE_MAX: usize = 1_000_000_000;
/// Memory of a column's encoder in a row group that is being written, beside its data.
pub const COLUMN_MEMORY: usize = 24 << 10;
/// Memory of a column of a row group that is written out, until the file is finished: 0.8 KiB, and
/// what it keeps the allocator from using again.
pub const CHUNK_MEMORY: usize = 2 << 10;
/// Data that a column has in a row group on average, with what its encoder keeps of each value.
pub const CHUNK_SIZE_MIN: usize = 16 << 10;
/// Memory of a field of a schema, beside its name and metadata.
pub const FIELD_MEMORY: usize = 2 << 10;
/// Copies of names and metadata while a file is written.
pub const SCHEMA_COPIES: usize = 10;
/// Fields of a batch, nested ones too.
pub const SCHEMA_FIELDS_MAX: usize = 1 << 17;
/// Bytes of a column's name.
pub const COLUMN_NAME_SIZE_MAX: usize = 64 << 10;
/// Bytes of a batch's schema: names and metadata.
pub const SCHEMA_SIZE_MAX: usize = 16 << 20;
/// Bytes of a row group's values as readers hold them: pyarrow reads no nested texts of 2 GiB and more
/// in a row group, and readers hold whole row groups.
pub const ROW_GROUP_EXPANDED_MAX: usize = 512 << 20;
/// Memory of a row group that is being written; more is flushed.
pub const ROW_GROUP_SIZE_MAX: usize = 16 << 20;
/// Rows of a row group.
pub const ROW_GROUP_ROWS_MAX: usize = 1 << 20;
/// Memory of all row groups of a job that are being written; of more, the largest is flushed.
pub const ROW_GROUPS_SIZE_MAX: usize = 64 << 20;
/// How far the clock of a file system may be behind the sentinel's where the time of a file says
/// that a worker of the old system wrote it.
pub const OLD_PEER_CLOCK_SLACK: Duration = Duration::from_secs(60);
/// Bytes of a record of what a job has published: the names of its files, twice.
pub const RECORD_SIZE_MAX: u64 = 64 << 20;
/// Bytes of a file that are read at a time to hash it.
pub const CHECK_READ_SIZE: usize = 64 << 10;
/// Bytes of a file that holds one name.
pub const SHORT_FILE_SIZE_MAX: u64 = 4 << 10;
/// Files that `run` moves to another layout in one transaction. A job's files are moved together.
pub const MOVED_AT_ONCE: usize = 2000;
/// Bytes of a journal of such moves: two paths of each file, and all files of one job more.
pub const MOVES_SIZE_MAX: u64 = 256 << 20;
/// Topics of a job, configured or published.
pub const TOPICS_MAX: usize = 10_000;
/// Open files that a worker asks the kernel for: one a topic.
pub const DESCRIPTORS_MAX: u64 = 1 << 20;
/// Descriptors that no plugin process may have, of what the worker may.
pub const DESCRIPTORS_RESERVED: u64 = 1 << 10;
/// Descriptors that a worker opens beside its slots: event loop, waker, control socket, signals,
/// locks, also those of environments, the output folder, tools that make an environment, a self-test, a settlement, an
/// interpreter or process that is being started.
pub const WORKER_DESCRIPTORS: u64 = 56;
/// Descriptors of a slot: its bridge's listener and connection, stdout and stderr, the pidfd, the
/// plugin's source, the lock of its environment (7); output of two topics and the stage of SQLite sinks (3); while another job of
/// the slot is published, a SQLite database, its journal, WAL index and stage, folder and record (6).
pub const SLOT_DESCRIPTORS: u64 = 16;
/// Files of a job's topics that are open between two batches; a job of more topics opens each for a
/// write. [`SLOT_DESCRIPTORS`] counts them.
pub const FILES_OPEN_MAX: usize = 2;
/// Descriptors of a fork server: its socket and its pidfd. Each job may need one of its own.
pub const INTERPRETER_DESCRIPTORS: u64 = 2;
/// Bytes of staged rows up to which a SQLite sink lets readers into its database while it writes
/// them. They are kept in memory as long as a reader is there.
pub const SQLITE_SHARED_SIZE_MAX: u64 = 64 << 20;
/// A SQLite database in which a table that has no index on `_job_id` gets one while a job publishes: it
/// takes a scan of the table, seconds for so much, while the database is locked.
pub const SQLITE_INDEXED_SIZE_MAX: u64 = 1 << 30;
/// Columns of a table of a SQLite database (SQLITE_MAX_COLUMN).
pub const TABLE_COLUMNS_MAX: usize = 2000;
/// Wait of a SQLite sink for its database while others have it locked.
pub const SQLITE_WAIT: Duration = Duration::from_secs(30);
/// The same wait for a database that another job of the worker has waited for in vain.
pub const SQLITE_STUCK_WAIT: Duration = Duration::from_secs(1);
/// Databases of which a worker remembers that.
pub const SQLITE_STUCK_MAX: usize = 1000;
/// Mount points of sinks' folders that a worker remembers.
pub const MOUNTS_MAX: usize = 1000;
/// A job's writer that was ordered to remove the output must have answered, or done a step of its
/// work; one that has not is given up, so that its slot is free. Longer than the wait for a SQLite
/// database, which such a step may contain.
pub const WRITER_TIMEOUT: Duration = Duration::from_secs(SQLITE_WAIT.as_secs() + 10);
/// The wait for an input's storage that does not respond: at a job's end, where the input is compared
/// with what it was, and where a command line reads it.
pub const INPUT_TIMEOUT: Duration = Duration::from_secs(30);
/// The same where the plugin failed by itself, which a change of the input may explain.
pub const INPUT_LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long that may take in all: nothing interrupts it.
pub const INPUT_LOOK_TIME_MAX: Duration = Duration::from_secs(60);
/// After such a wait it is reported.
pub const INPUT_SILENCE_TOLD: Duration = Duration::from_secs(5);
/// The same for the output folder of a run. A sleeping disk takes a few seconds.
pub const OUTPUT_SILENCE_TOLD: Duration = Duration::from_secs(10);
/// Inputs of a command line whose storage did not respond, before the others fail at once.
pub const INPUTS_SILENT_MAX: usize = 10;
/// Threads of a worker that check inputs. Those whose storage does not respond stay until it does.
pub const INPUTS_WATCHED_MAX: usize = 2 * WORKER_SLOTS_MAX;
/// A step of a publish. One may be the whole transaction of a SQLite sink, which takes minutes for
/// a large table.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(300);
/// Wait of a publish for one of another job into the same sink of mode `replace` or `error`.
pub const CLAIM_WAIT: Duration = Duration::from_secs(1);
/// How often the types of a Parquet sink's columns may change. For each change there is a file in
/// staging until the output is complete.
pub const SEGMENTS_MAX: usize = 64;
/// Arrow data handed to the Parquet writer at a time.
pub const WRITE_SLICE_SIZE: usize = 4 << 20;
/// Reads of one plugin process's log pipe per turn.
pub const LOG_READS_PER_TURN: usize = 16;
/// Turns of log reading after a plugin process's exit.
pub const LOG_TURNS_AT_EXIT: usize = 16;
/// Bytes read from one plugin process's bridge per turn.
pub const BRIDGE_BYTES_PER_TURN: usize = 4 << 20;
/// An environment that could not be created is tried again after this; it doubles.
pub const ENVIRONMENT_RETRY_AFTER: Duration = Duration::from_secs(10);
/// Longest pause before an environment is tried again.
pub const ENVIRONMENT_RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// How often a worker's environment is recorded as ready after it failed, each time within
/// [`ENVIRONMENT_FLIP`]: each change is a write.
pub const ENVIRONMENT_FLIPS_MAX: u32 = 8;
/// See [`ENVIRONMENT_FLIPS_MAX`].
pub const ENVIRONMENT_FLIP: Duration = Duration::from_secs(5);
/// Warm interpreters of one worker; each holds its imports in memory.
pub const WARM_INTERPRETERS_MAX: usize = 8;
/// Plugin versions whose sources a worker keeps in memory.
pub const PLUGIN_VERSIONS_MAX: usize = 256;
/// Attempts that a worker may hold whose environments are being created.
pub const WAITING_MAX: usize = 256;
/// An environment whose creation takes longer is reported to the sentinel, so that the worker gets
/// other jobs meanwhile.
pub const ENVIRONMENT_SLOW: Duration = Duration::from_secs(1);
/// Jobs a worker holds beyond its slots; an old sentinel may send more than it can run.
pub const BACKLOG_MAX: usize = 1024;
/// A job.
pub const JOB_TIMEOUT: Duration = Duration::from_secs(3600);
/// Longest pause between a worker's HEARTBEATs; it is a quarter of a lease.
pub const WORKER_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Shortest pause between a worker's HEARTBEATs.
pub const WORKER_HEARTBEAT_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Requests of a worker that are remembered without an answer.
pub const UNANSWERED_REQUESTS_MAX: usize = 1000;
/// A receipt without an acknowledgement is sent again after this, though its connection lives.
pub const RECEIPT_RESEND_AFTER: Duration = Duration::from_secs(10);
/// Bytes of a receipt on the wire; a larger one is sent without its list of files.
pub const RECEIPT_SIZE_MAX: usize = 8 << 20;
/// Queued messages get this long to leave when a worker stops.
pub const LINGER: Duration = Duration::from_secs(1);
/// Port of a sentinel.
pub const PORT_DEFAULT: u16 = 5555;
