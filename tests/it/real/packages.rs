//! The packages, downloaded and unpacked on first use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::common::*;

/// The folder with the packages' files, `pip.log` (the log of their download) and `derived`.
pub(super) fn files() -> &'static Path {
    static FILES: OnceLock<PathBuf> = OnceLock::new();
    FILES.get_or_init(|| {
        let here = root().join("tests/it/real");
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("real-inputs");
        let [packages, files, done] =
            ["packages", "files", "done.txt"].map(|name| place.join(name));
        let names = ["requirements.txt", "build.txt", "inputs.py"];
        let texts = names.map(|name| fs::read_to_string(here.join(name)).unwrap());
        let wanted = texts.concat();
        fs::create_dir_all(&place).unwrap();
        let lock = fs::File::create(place.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        if fs::read_to_string(&done).ok().as_deref() != Some(&wanted) {
            fs::remove_dir_all(&place).unwrap();
            fs::create_dir_all(&packages).unwrap();
            download(&here, &place, &packages);
            let mut unpack = Command::new(python());
            run(unpack
                .arg(here.join("inputs.py"))
                .arg(&packages)
                .arg(&files));
            fs::copy(place.join("pip.log"), files.join("pip.log")).unwrap();
            fs::write(&done, wanted).unwrap();
        }
        files
    })
}

/// By pip, which asks a source distribution for its name before it keeps it: with the backends of
/// `build.txt`, not with those that are newest today.
fn download(here: &Path, place: &Path, packages: &Path) {
    let build = place.join("build");
    let pip = || {
        let mut pip = Command::new(python());
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check"])
            .current_dir(place)
            .env("PYTHONPATH", &build);
        pip
    };
    let list = |name: &str| here.join(name);
    run(pip()
        .args(["install", "--no-deps", "--require-hashes", "--target"])
        .arg(&build)
        .arg("-r")
        .arg(list("build.txt")));
    run(pip()
        .args([
            "download",
            "--no-deps",
            "--require-hashes",
            "--no-build-isolation",
            "--log",
            "pip.log",
            "-d",
        ])
        .arg(packages)
        .arg("-r")
        .arg(list("requirements.txt")));
}

fn run(command: &mut Command) {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
}
