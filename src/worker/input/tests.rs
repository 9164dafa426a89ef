//! Unit tests of `input.rs`.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn found(path: &Path) -> InputState {
    let found = fs::metadata(path).unwrap();
    InputState {
        device: found.dev(),
        inode: found.ino(),
        size: found.size(),
        mtime_ns: mtime_ns(found.mtime(), found.mtime_nsec()),
        ctime_ns: mtime_ns(found.ctime(), found.ctime_nsec()),
        mode: found.mode().into(),
        links: found.nlink(),
    }
}

#[test]
fn a_plugin_that_finds_another_file_at_the_path_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["file", "copy"] {
        fs::write(path(name), "content").unwrap();
    }
    let state = found(&path("file"));
    let check = |name: &str, found: Found| {
        let input = Input::watch(&path(name), None, 1).unwrap();
        let wait = Duration::from_secs(100);
        input.begin(wait, || true).unwrap().unwrap();
        let ends = [
            input.compare(found, wait, || true),
            Input::watch(&path(name), None, 1)
                .unwrap()
                .check_briefly(found, false, wait, || true),
        ];
        let ends = ends.map(|end| end.unwrap().map_err(|failure| failure.other_input));
        assert_eq!(ends[0], ends[1], "{name} {found:?}");
        ends[0]
    };
    let other = Err(true);
    assert_eq!(check("file", Found::Unknown), Ok(()));
    assert_eq!(check("file", Found::File(state)), Ok(()));
    assert_eq!(check("copy", Found::File(state)), other);
    assert_eq!(check("file", Found::Refused), other);
    assert_eq!(check("missing", Found::Refused), Ok(()));
    assert_eq!(check("missing", Found::File(state)), other);
    for changed in [
        InputState { device: 0, ..state },
        InputState { size: 0, ..state },
        InputState {
            mtime_ns: 0,
            ..state
        },
        InputState {
            ctime_ns: 0,
            ..state
        },
    ] {
        assert_eq!(check("file", Found::File(changed)), other, "{changed:?}");
    }
    fs::set_permissions(path("file"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(
        check("file", Found::File(state)),
        Ok(()),
        "only its mode differs"
    );
}
