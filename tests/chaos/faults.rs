//! Faults that a program's own system calls meet: a library (`faults.c`) that is compiled with
//! `cc` on first use, loaded by LD_PRELOAD, and steered through a mapped file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Bits of `fault_calls`, as in `faults.c`.
pub(crate) const RENAME: i64 = 1;
pub(crate) const LINK: i64 = 2;
pub(crate) const SYNC: i64 = 4;
pub(crate) const CREATE: i64 = 16;
pub(crate) const WRITE: i64 = 32;
pub(crate) const MAKE_DIR: i64 = 64;

/// What a process does at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Stop = 1,
    Kill = 2,
}

const SIZE: u64 = 4096;
const TEXT_AT: u64 = 72;
const TEXT_SIZE: usize = 1024;

/// Positions of the fields of `struct control`.
#[derive(Clone, Copy)]
enum Field {
    ClockShift,
    Errno,
    Calls,
    Permille,
    Delay,
    StopAt,
    StopAction,
    CallCount,
    FaultCount,
}

/// The library, compiled once a test binary.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos/faults.c");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let built = tempfile::Builder::new()
            .prefix("faults")
            .suffix(".so")
            .tempfile_in(folder)
            .unwrap();
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(built.path())
            .arg(&source)
            .status();
        assert!(
            status.as_ref().is_ok_and(std::process::ExitStatus::success),
            "cannot compile {}: {status:?}; a C compiler named cc is needed",
            source.display()
        );
        // By rename: another run of the tests may have the same file loaded.
        let library = folder.join("chaos-faults.so");
        built.persist(&library).unwrap();
        library
    })
}

/// The faults of one program.
pub(crate) struct Faults {
    path: PathBuf,
    file: File,
    root: PathBuf,
}

impl Faults {
    /// None to begin with. Disk faults are those of calls below `root`.
    pub(crate) fn new(path: &Path, root: &Path) -> Self {
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        file.set_len(SIZE).unwrap();
        Faults {
            path: path.to_owned(),
            file,
            root: root.to_owned(),
        }
    }

    /// The program meets these faults.
    pub(crate) fn load(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", library())
            .env("CHAOS_CONTROL", &self.path)
            .env("CHAOS_ROOT", &self.root);
    }

    // The library runs on this machine, so fields have its order of bytes.
    #[allow(clippy::host_endian_bytes)]
    fn set(&self, field: Field, value: i64) {
        let at = field as u64 * 8;
        self.file.write_all_at(&value.to_ne_bytes(), at).unwrap();
    }

    #[allow(clippy::host_endian_bytes)]
    fn get(&self, field: Field) -> i64 {
        let mut bytes = [0; 8];
        self.file
            .read_exact_at(&mut bytes, field as u64 * 8)
            .unwrap();
        i64::from_ne_bytes(bytes)
    }

    /// The wall clock of the program is wrong by so much.
    pub(crate) fn shift_clock(&self, seconds: i64) {
        self.set(Field::ClockShift, seconds);
    }

    /// A share of these calls fails.
    pub(crate) fn fail(&self, errno: i32, calls: i64, permille: i64) {
        self.set(Field::Calls, calls);
        self.set(Field::Permille, permille);
        self.set(Field::Errno, errno.into());
    }

    /// Renames and links wait before they are done.
    pub(crate) fn delay(&self, ms: i64) {
        self.set(Field::Delay, ms);
    }

    /// The disk is well again.
    pub(crate) fn heal_disk(&self) {
        self.set(Field::Errno, 0);
        self.set(Field::Delay, 0);
    }

    /// The process stops or is killed before its n-th change below the root.
    pub(crate) fn stop_at(&self, call: i64, action: At) {
        self.set(Field::StopAction, action as i64);
        self.set(Field::StopAt, call);
    }

    /// Changes below the root so far.
    pub(crate) fn calls(&self) -> i64 {
        self.get(Field::CallCount)
    }

    /// Calls that failed by [`Faults::fail`].
    pub(crate) fn faults(&self) -> i64 {
        self.get(Field::FaultCount)
    }

    /// The call at which the process stopped.
    pub(crate) fn stopped_at(&self) -> String {
        let mut bytes = [0; TEXT_SIZE];
        self.file.read_exact_at(&mut bytes, TEXT_AT).unwrap();
        let size = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..size]).into_owned()
    }
}
