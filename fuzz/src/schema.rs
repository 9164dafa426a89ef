//! A database with changed bytes: it must be opened or refused without a panic, and queries on an
//! opened store must not panic.

use std::cell::RefCell;

use casparian::store::{ClaimRequest, Inspector, JobFilter, Now, Open, Store};

thread_local! {
    static DIR: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
}

/// The legacy database of the reference system.
const LEGACY: &[u8] = include_bytes!("../../tests/data/db/legacy_v5.sqlite");

/// The same database after Casparian's migrations.
fn ours() -> Vec<u8> {
    static OURS: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let make = || {
        let dir = crate::memory_dir();
        let path = dir.path().join("q.sqlite");
        std::fs::write(&path, LEGACY).unwrap();
        drop(Store::open(&path, Open::Existing).unwrap());
        std::fs::read(&path).unwrap()
    };
    OURS.get_or_init(make).clone()
}

pub fn run(data: &[u8]) {
    // The first byte chooses the legacy or the migrated database. Each four bytes that follow are
    // an edit: a position (in steps that cover the whole file) and a value.
    let mut bytes;
    {
        let is_ours = data.first().is_some_and(|byte| byte & 1 == 1);
        bytes = if is_ours { ours() } else { LEGACY.to_vec() };
        let data = data.get(1..).unwrap_or(&[]);
        let step = bytes.len() / (1 << 16) + 1;
        for edit in data.chunks_exact(4) {
            let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) * step
                + usize::from(edit[2]) % step;
            if let Some(byte) = bytes.get_mut(at) {
                *byte = edit[3];
            }
        }
    }
    DIR.with_borrow_mut(|slot| {
        let dir = slot.get_or_insert_with(crate::memory_dir);
        let path = dir.path().join("q.sqlite");
        for more in ["", "-wal", "-shm", "-journal"] {
            let _ = std::fs::remove_file(dir.path().join(format!("q.sqlite{more}")));
        }
        std::fs::write(&path, &bytes).unwrap();
        match Store::open(&path, Open::Existing) {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(mut store) => {
                let _ = store.changed();
                let _ = store.workers();
                let _ = store.running();
                let _ = store.silent();
                let _ = store.lease_ms(&Now {
                    unix_ms: 1,
                    boot_ms: 1,
                    boot_id: "b".into(),
                });
                let unsettled = store.unsettled(0).unwrap_or_default();
                if let Ok(found) = store.queued_plugins(100, 1)
                    && let Ok(mut transaction) = store.begin()
                {
                    let claim = ClaimRequest {
                        worker_id: "w",
                        hostname: "h",
                        pid: None,
                        plugins: &found.names,
                        limit: 10,
                        is_idle: true,
                        is_old: false,
                        lease_until_ms: 1,
                    };
                    for job_id in unsettled {
                        let _ = transaction.take_settlement(job_id);
                    }
                    if transaction.claim(&claim, 1).is_ok() {
                        let _ = transaction.commit();
                    }
                }
            }
        }
        if let Ok(inspector) = Inspector::open(&path) {
            let _ = inspector.jobs(&JobFilter::default());
            let _ = inspector.job(1);
        }
    });
}
