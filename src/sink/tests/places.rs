//! One file under several paths: symbolic links, hard links, mounts, a root that has moved.

use std::os::unix::fs::symlink;

use super::roots::Mount;
use super::*;

#[test]
fn a_root_whose_path_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"odd\xff"));
    for exists in [false, true] {
        for error in [
            create_folder(&odd).unwrap_err(),
            Root::open(&odd, RootOptions::default()).unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(text.contains("UTF-8"), "{text}");
        }
        assert_eq!(odd.exists(), exists);
        if !exists {
            fs::create_dir(&odd).unwrap();
        }
    }
    let link = dir.path().join("link");
    symlink(&odd, &link).unwrap();
    let error = Root::open(&link, RootOptions::default()).unwrap_err();
    assert!(error.to_string().contains("UTF-8"), "{error}");
    assert_eq!(names_in(&odd), [""; 0]);
}

#[test]
fn a_root_whose_own_folders_are_on_another_mount_is_refused() {
    let other = tempfile::tempdir().unwrap();
    let bind = other.path().to_str().unwrap().to_owned();
    for folder in ["", "/staging", "/outputs", "/barred", "/workers"] {
        for kind in [&["-t", "tmpfs", "tmpfs"][..], &["--bind", &bind]] {
            let fixture = Fixture::new();
            let place = format!(".casparian{folder}");
            let Some(mount) = Mount::new(kind, fixture.path(&place)) else {
                eprintln!("skipped: this process may not mount");
                return;
            };
            for error in [
                Root::open(fixture.dir.path(), RootOptions::default()).map(drop),
                fixture.root.ensure(),
            ] {
                let text = error.unwrap_err().to_string();
                assert!(
                    text.contains(&place) && text.contains("file system"),
                    "{text}"
                );
            }
            drop(mount);
            open(fixture.dir.path());
        }
    }
}
