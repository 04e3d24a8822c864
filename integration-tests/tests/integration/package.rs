//! Packages as Python packs them, good ones and evil ones.

use std::{fs, path::Path};

use muster_agent::{Action, ActionError};
use muster_integration::package::Verify;
use serde_json::{Value, json};

use crate::{folder, permanent, python, retry, sha256, trial};

const PACK: &str = "
import io, tarfile, zipfile
files = {'app/bin/serve': b'serve', 'app/assets/logo.svg': b'<svg/>', 'app/empty.txt': b''}
for name, mode in (('app.tar', 'w'), ('app.tar.gz', 'w:gz'), ('app.tgz', 'w:gz')):
    with tarfile.open(name, mode) as t:
        for path, content in files.items():
            i = tarfile.TarInfo(path); i.size = len(content); i.mode = 0o755; t.addfile(i, io.BytesIO(content))
with zipfile.ZipFile('app.zip', 'w', zipfile.ZIP_DEFLATED) as z:
    for path, content in files.items(): z.writestr(path, content)
";
const PACKED: [&str; 4] = ["app.tar", "app.tar.gz", "app.tgz", "app.zip"];
/// Of `serve`, as sha256sum says.
const SERVE: &str = "app/bin/serve";

async fn verify(with: &Value) -> Result<muster_agent::Done, ActionError> {
    Verify.run(&trial().context(), with).await
}

fn digest_of_serve(dir: &Path) -> String {
    fs::write(dir.join("serve"), "serve").unwrap();
    sha256(&dir.join("serve"))
}

#[tokio::test]
async fn a_good_package_of_each_kind_passes_with_its_figures() {
    let (_dir, dir) = folder();
    python(&dir, PACK);
    let serve = digest_of_serve(&dir);
    for name in PACKED {
        let package = dir.join(name);
        let with = json!({
            "package": package, "sha256": sha256(&package), "members": {SERVE: serve.to_uppercase()},
            "contains": ["app/assets/", "app/empty.txt"],
        });
        let done = verify(&with).await.unwrap();
        assert_eq!(done.output["sha256"], sha256(&package));
        assert_eq!((&done.output["members"], &done.output["unpacked_bytes"]), (&json!(3), &json!(11)), "{name}");
        let packed = done.observations.iter().find(|o| o.name == "packed").unwrap();
        assert!(packed.unit == "bytes" && packed.value > 0.0);
    }
}

#[tokio::test]
async fn what_is_missing_or_different_is_named() {
    let (_dir, dir) = folder();
    python(&dir, PACK);
    let other = "0".repeat(64);
    for name in PACKED {
        let package = dir.join(name);
        let with = json!({
            "package": package, "members": {SERVE: other, "app/gone": other}, "contains": ["app/none/", "app/empty.txt"],
        });
        let (message, output) = permanent(verify(&with).await);
        assert!(message.contains("app/gone") && message.contains("app/none/") && message.contains(SERVE), "{message}");
        assert_eq!(output["missing"], json!(["app/gone", "app/none/"]));
        assert_eq!(output["mismatched"], json!([format!("{SERVE}: {}", digest_of_serve(&dir))]));
        let (message, output) = permanent(verify(&json!({"package": package, "sha256": other})).await);
        assert!(message.contains(&sha256(&package)) && output["members"] == 0, "{message}");
    }
}

#[tokio::test]
async fn an_evil_package_is_refused_and_writes_nothing() {
    let (_dir, dir) = folder();
    python(
        &dir,
        "
import io, tarfile, zipfile
def tar(name, path, **more):
    with tarfile.open(name, 'w:gz') as t:
        i = tarfile.TarInfo(path)
        for k, v in more.items(): setattr(i, k, v)
        t.addfile(i, io.BytesIO(b'x' * i.size))
tar('up.tar.gz', '../../escaped', size=1)
tar('absolute.tgz', '/tmp/escaped', size=1)
tar('link.tar.gz', 'link', type=tarfile.SYMTYPE, linkname='/etc')
tar('long.tar.gz', '../' + 'f' * 200, size=1)
with zipfile.ZipFile('up.zip', 'w') as z: z.writestr('../escaped', 'x')
with zipfile.ZipFile('link.zip', 'w') as z:
    i = zipfile.ZipInfo('link'); i.external_attr = 0o120777 << 16; z.writestr(i, '/etc')
with tarfile.open('bomb.tar.gz', 'w:gz') as t:
    i = tarfile.TarInfo('zeros'); i.size = 64 << 20; t.addfile(i, io.BytesIO(bytes(64 << 20)))
with zipfile.ZipFile('bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('zeros', bytes(64 << 20))
with zipfile.ZipFile('many.zip', 'w') as z:
    for n in range(1001): z.writestr(str(n), '')
open('cut.tar.gz', 'wb').write(open('bomb.tar.gz', 'rb').read()[:-100])
open('none.zip', 'w').write('no package')
",
    );
    for (name, why) in [
        ("up.tar.gz", "leads out"),
        ("absolute.tgz", "leads out"),
        ("long.tar.gz", "leads out"),
        ("up.zip", "leads out"),
        ("link.tar.gz", "neither a file nor a folder"),
        ("link.zip", "neither a file nor a folder"),
        ("bomb.tar.gz", "more than 1048576 bytes, unpacked"),
        ("bomb.zip", "more than 1048576 bytes, unpacked"),
        ("many.zip", "more than 1000 members"),
        ("none.zip", "can't be read"),
    ] {
        let limits = json!({"unpacked_bytes": 1 << 20, "members": 1000});
        let (message, _) = permanent(verify(&json!({"package": dir.join(name), "limits": limits})).await);
        assert!(message.contains(why), "{name}: {message}");
    }
    let (message, _) = permanent(verify(&json!({"package": dir.join("cut.tar.gz")})).await);
    assert!(message.contains("can't be read to its end"), "{message}");
    let small = json!({"package": dir.join("bomb.tar.gz"), "limits": {"packed_bytes": 1000}});
    assert!(permanent(verify(&small).await).0.contains("more than the limit of 1000"));
    assert!(!dir.join("../escaped").exists() && !Path::new("/tmp/escaped").exists());
}

#[tokio::test]
async fn a_package_that_is_not_there_yet_may_come() {
    let (_dir, dir) = folder();
    assert!(retry(verify(&json!({"package": dir.join("app.zip")})).await).0.contains("delivered"));
    fs::write(dir.join("app.exe"), "").unwrap();
    assert!(permanent(verify(&json!({"package": dir.join("app.exe")})).await).0.contains("pack it"));
    permanent(verify(&json!({"package": "app.zip"})).await);
}
