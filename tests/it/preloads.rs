//! A job gives the same from a warm interpreter as from a fresh one, whatever its preloads do.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use casparian::job::JobStatus;
use casparian::plugin::environment::{Build, hash, provision, requirements_lockfile};

use crate::common::*;
use crate::dispatcher::*;

/// An environment of the shared home whose interpreters preload this module; gives its hash.
fn with_preload(name: &str, source: &str) -> (String, String) {
    let lockfile = requirements_lockfile(&[], None, &[name.to_owned()]);
    let home = home().join(".casparian_flow");
    let made = provision(
        &home,
        &lockfile,
        None,
        &Build::default(),
        &AtomicBool::new(false),
        &mut |_| {},
    )
    .unwrap();
    let script = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let mut command = std::process::Command::new(&made.interpreter);
    let folder = PathBuf::from(stdout(&output(command.args(["-c", script]))).trim());
    std::fs::write(folder.join(format!("{name}.py")), source).unwrap();
    (hash(&lockfile), lockfile)
}

/// Runs one plugin over an input; gives what it has written beside it.
fn seen(
    start: &str,
    body: &str,
    preload: &(String, String),
    variables: &[(&str, &[u8])],
) -> String {
    let arguments = [
        "--plugin-start",
        start,
        "--slots",
        "1",
        "--job-timeout",
        "60",
    ];
    let mut rig = Rig::with(&arguments, |command, _| {
        for name in ["TZ", "LANG", "LC_ALL"] {
            command.env_remove(name);
        }
        let values = variables.iter();
        command.envs(values.map(|(name, value)| (name, OsStr::from_bytes(value))));
    });
    rig.dispatcher.prepare(&preload.0, &preload.1);
    let input = rig.path("in");
    let job = rig.dispatcher.dispatch(&handler(body), &input, &preload.0);
    let receipt = rig.dispatcher.receipt(job);
    assert_eq!(receipt.status, JobStatus::Success, "{start}: {receipt:?}");
    std::fs::read_to_string(rig.path("in.seen")).unwrap()
}

/// Changes whatever a module that is imported may change of its process.
const ODD: &str = "
import locale, os, signal, time
os.environ['TZ'] = 'Asia/Kathmandu'
os.environ['LC_TIME'] = 'C'
os.environ['ODD'] = '1'
os.environ.pop('PATH', None)
time.tzset()
locale.setlocale(locale.LC_ALL, 'C')
os.umask(0o777)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, print)
";

/// What a plugin sees of its process.
const SEES: &str = "
import json, locale, signal, sys
umask = os.umask(0)
job = ('BRIDGE_', 'HOME', 'TMPDIR', 'CASPARIAN_PLUGIN_FILE')
seen = {
    'variables': {k: v for k, v in sorted(os.environ.items()) if not k.startswith(job)},
    'zone': [time.tzname, time.localtime(0).tm_hour],
    'locale': [locale.setlocale(locale.LC_ALL), locale.getpreferredencoding()],
    'encodings': [sys.getfilesystemencoding(), sys.stdout.encoding, sys.stderr.errors],
    'umask': umask,
    'is_at_home': os.getcwd() == os.environ['HOME'],
    'signals': [str(signal.getsignal(n)) for n in (2, 10, 13, 15, 17)],
    'threads': threading.active_count(),
    'descriptors': len(os.listdir('/proc/self/fd')) < 20,
    'umlaut': 'ä'.encode(locale.getpreferredencoding(), 'replace').hex(),
}
open(path + '.seen', 'w').write(json.dumps(seen, default=str))
yield pa.table({'x': [1]})
";

#[test]
fn warm_and_fresh_interpreters_show_a_plugin_the_same_process() {
    let odd = with_preload("casparian_odd", ODD);
    let none = (
        hash(&requirements_lockfile(&[], None, &[])),
        requirements_lockfile(&[], None, &[]),
    );
    let worlds: &[&[(&str, &[u8])]] = &[
        &[],
        &[("TZ", b"Asia/Tokyo"), ("LANG", b"C.UTF-8")],
        &[
            ("TZ", b"America/St_Johns"),
            ("LC_ALL", b"C"),
            ("LANG", b"de_DE.UTF-8"),
        ],
        &[
            ("LC_ALL", b"POSIX"),
            ("LC_ODD", b"caf\xe9"),
            ("SECRET", b"x"),
        ],
        &[("LANG", b"\xff"), ("SECRET", b"\xfe")],
    ];
    for variables in worlds {
        for (preload, import) in [(&none, ""), (&odd, "import casparian_odd")] {
            let body = format!("{import}{SEES}");
            let fresh = seen("spawn", &body, preload, variables);
            assert!(!fresh.contains("SECRET"), "{fresh}");
            assert_eq!(fresh.contains("ODD\": \"1"), !import.is_empty(), "{fresh}");
            let warm = seen("warm", &body, preload, variables);
            assert_eq!(warm, fresh, "{variables:?}");
        }
    }
}

const POOL: &str = "
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(2)
pool.submit(int).result()
lock = __import__('threading').Lock()
";

#[test]
fn a_thread_pool_of_a_preload_does_not_hang_jobs_and_is_reported_once() {
    let pool = with_preload("casparian_pool", POOL);
    let body = "import casparian_pool\nx = casparian_pool.pool.submit(lambda: 7).result()\n\
                open(path + '.seen', 'w').write(str(x))\nyield pa.table({'x': [x]})";
    for start in ["spawn", "warm"] {
        assert_eq!(seen(start, body, &pool, &[]), "7", "{start}");
    }
    let mut rig = Rig::with(&["--slots", "1"], |_, _| {});
    rig.dispatcher.prepare(&pool.0, &pool.1);
    let input = rig.path("in");
    for _ in 0..2 {
        let job = rig.dispatcher.dispatch(&handler(body), &input, &pool.0);
        let receipt = rig.dispatcher.receipt(job);
        assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
    }
    let line = rig.worker.line_with("casparian_pool");
    assert!(line.contains("leaves 1 thread(s) running"), "{line}");
    assert!(line.contains("preload"), "{line}");
    rig.worker.signal("-TERM");
    rig.worker.wait();
    assert_eq!(rig.worker.count("casparian_pool"), 1);
}
