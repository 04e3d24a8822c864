//! Releases put in place from packages and folders, and taken away again.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use muster_agent::Action;
use muster_deployment::prepare::Prepare;
use serde_json::{Value, json};

use crate::{diff, names, needs_person, permanent, retry, satisfied, sha256, shell, trial};

/// A folder with a build and packages of it; and one for releases.
fn built() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    shell(
        dir.path(),
        "mkdir -p build/bin build/assets/empty releases; echo serve >build/bin/serve; chmod 755 build/bin/serve
         echo logo >'build/assets/the logo.svg'; tar -C build -czf app.tar.gz . ; tar -C build -cf app.tar .
         cd build; python3 -m zipfile -c ../app.zip bin assets",
    );
    let path = dir.path().to_owned();
    (dir, path)
}

/// What the parameter's description says that the digest of a folder is.
fn digest_of(folder: &Path) -> String {
    let list = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum";
    shell(folder, &format!("({list}) | sha256sum | cut -d' ' -f1"))
}

fn with(dir: &Path, package: &str) -> Value {
    let package = dir.join(package);
    json!({"releases": dir.join("releases"), "version": "1.4.0", "package": package, "sha256": sha256(&package)})
}

async fn undo_twice(with: &Value, prepared: &Value) {
    for _ in 0..2 {
        Prepare.undo(&trial().context(), with, prepared).await.unwrap();
    }
}

#[tokio::test]
async fn a_release_is_put_in_place_whole_and_taken_away_again() {
    let (_dir, dir) = built();
    let mut folder = with(&dir, "app.tar");
    folder.as_object_mut().unwrap().remove("package");
    folder["folder"] = json!(dir.join("build"));
    folder["sha256"] = json!(digest_of(&dir.join("build")).to_uppercase());
    let release = dir.join("releases/1.4.0");
    for with in [with(&dir, "app.tar"), with(&dir, "app.tar.gz"), with(&dir, "app.zip"), folder] {
        assert!(diff(&Prepare, &with).await.contains("not there yet"));
        let prepared = Prepare.prepare(&trial().context(), &with).await.unwrap();
        let done = Prepare.run(&trial().context(), &with).await.unwrap();
        assert_eq!(satisfied(&Prepare, &with).await, done.output);
        assert_eq!(done.output["path"], json!(release));
        assert_eq!(done.output["tree_sha256"], digest_of(&dir.join("build")), "the same tree, by any way");
        assert_eq!((&done.output["files"], &done.output["bytes"]), (&json!(2), &json!(11)));
        assert_eq!(fs::read_to_string(release.join("assets/the logo.svg")).unwrap(), "logo\n");
        assert_eq!(fs::metadata(release.join("bin/serve")).unwrap().permissions().mode() & 0o777, 0o755);
        shell(&release, "sha256sum --quiet -c .muster-release.sha256");
        assert_eq!(names(&dir.join("releases")), ["1.4.0"], "nothing else is left there");
        // A second time changes nothing.
        assert_eq!(Prepare.run(&trial().context(), &with).await.unwrap().output, done.output);
        undo_twice(&with, &prepared).await;
        assert_eq!(names(&dir.join("releases")), [""; 0]);
    }
}

#[tokio::test]
async fn another_digest_than_wanted_puts_nothing_in_place() {
    let (_dir, dir) = built();
    let mut other = with(&dir, "app.tar.gz");
    other["sha256"] = json!("0".repeat(64));
    let (message, _) = permanent(Prepare.run(&trial().context(), &other).await);
    assert!(message.contains(&sha256(&dir.join("app.tar.gz"))), "{message}");
    let mut folder = with(&dir, "app.tar.gz");
    folder.as_object_mut().unwrap().remove("package");
    folder["folder"] = json!(dir.join("build"));
    folder["sha256"] = json!(digest_of(&dir.join("build")));
    fs::write(dir.join("build/bin/serve"), "changed").unwrap();
    permanent(Prepare.run(&trial().context(), &folder).await);
    fs::remove_file(dir.join("app.tar")).unwrap();
    let gone = json!({"releases": dir.join("releases"), "version": "1", "package": dir.join("app.tar"), "sha256": "0".repeat(64)});
    assert!(retry(Prepare.run(&trial().context(), &gone).await).contains("delivered"));
    assert_eq!(names(&dir.join("releases")), [""; 0]);
}

#[tokio::test]
async fn an_evil_package_leaves_nothing_behind() {
    let (_dir, dir) = built();
    shell(
        &dir,
        "echo x >escaped-source; tar -P --transform 's,^,../../,' -cf up.tar escaped-source
         ln -s /etc build/link; tar -C build -czf link.tar.gz . ; head -c 4000000 /dev/zero >build/zeros
         tar -C build -czf bomb.tar.gz zeros; mkdir own; echo x >own/.muster-release.json; tar -C own -cf own.tar .",
    );
    for (package, why) in [
        ("up.tar", "leads out"),
        ("link.tar.gz", "neither a file nor a folder"),
        ("bomb.tar.gz", "more than 1000000 bytes, unpacked"),
        ("own.tar", "may not hold .muster-release"),
    ] {
        let mut with = with(&dir, package);
        with["limits"] = json!({"unpacked_bytes": 1_000_000});
        let (message, _) = permanent(Prepare.run(&trial().context(), &with).await);
        assert!(message.contains(why), "{message}");
        assert_eq!(names(&dir.join("releases")), [""; 0], "{package}");
    }
    let here = names(&dir);
    assert!(!here.contains(&"escaped-source.1".to_owned()) && !dir.parent().unwrap().join("escaped-source").exists());
}

#[tokio::test]
async fn what_a_crash_left_is_done_again() {
    let (_dir, dir) = built();
    let with = with(&dir, "app.tar.gz");
    let half = dir.join("releases/.1.4.0.muster-new/bin");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("half"), "half").unwrap();
    let prepared = Prepare.prepare(&trial().context(), &with).await.unwrap();
    Prepare.run(&trial().context(), &with).await.unwrap();
    assert!(!dir.join("releases/1.4.0/bin/half").exists());
    // Undo after a run that did not begin, and after an undo that broke off.
    fs::rename(dir.join("releases/1.4.0"), dir.join("releases/.1.4.0.muster-gone")).unwrap();
    fs::create_dir_all(&half).unwrap();
    undo_twice(&with, &prepared).await;
    assert_eq!(names(&dir.join("releases")), [""; 0]);
}

#[tokio::test]
async fn a_version_that_is_there_is_never_changed() {
    let (_dir, dir) = built();
    let with_app = with(&dir, "app.tar.gz");
    let release = dir.join("releases/1.4.0");
    // Made by another hand between check and run.
    let prepared = Prepare.prepare(&trial().context(), &with_app).await.unwrap();
    fs::create_dir(&release).unwrap();
    fs::write(release.join("theirs"), "theirs").unwrap();
    assert!(needs_person(Prepare.run(&trial().context(), &with_app).await).contains("new version"));
    let kept = needs_person(Prepare.undo(&trial().context(), &with_app, &prepared).await);
    assert!(kept.contains("by somebody else") && release.join("theirs").exists(), "{kept}");
    fs::remove_dir_all(&release).unwrap();

    let prepared = Prepare.prepare(&trial().context(), &with_app).await.unwrap();
    Prepare.run(&trial().context(), &with_app).await.unwrap();
    let again = Prepare.prepare(&trial().context(), &with_app).await.unwrap();
    Prepare.undo(&trial().context(), &with_app, &again).await.unwrap();
    assert!(release.exists(), "who found it there does not take it away");
    assert!(diff(&Prepare, &with(&dir, "app.tar")).await.contains("from a package or folder of sha256"));
    for (script, what) in [
        ("echo x >>bin/serve", "bin/serve was changed"),
        ("echo x >new", "new was added"),
        ("rm bin/serve", "bin/serve is gone"),
    ] {
        shell(&release, script);
        assert!(diff(&Prepare, &with_app).await.contains(what));
        assert!(needs_person(Prepare.run(&trial().context(), &with_app).await).contains(what));
        Prepare.undo(&trial().context(), &with_app, &prepared).await.unwrap();
        Prepare.run(&trial().context(), &with_app).await.unwrap();
    }
}

#[tokio::test]
async fn a_version_stays_in_its_folder() {
    let (_dir, dir) = built();
    for version in ["../1", "a/b", "", ".hidden", "-rf", &"1".repeat(65)] {
        let mut with = with(&dir, "app.tar");
        with["version"] = json!(version);
        assert!(permanent(Prepare.run(&trial().context(), &with).await).0.contains("version"), "{version}");
    }
    let trial = trial();
    trial.cancel();
    assert!(retry(Prepare.run(&trial.context(), &with(&dir, "app.tar")).await).contains("cancelled"));
    assert_eq!(names(&dir.join("releases")), [""; 0]);
}
