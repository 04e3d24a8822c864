//! proto/muster/v1/*.proto → descriptor set → tonic code. No protoc has to be installed.
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/muster");
    let mut files: Vec<PathBuf> =
        fs::read_dir("proto/muster/v1")?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort();
    let set = protox::compile(&files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    fs::write(out.join("muster.bin"), prost::Message::encode_to_vec(&set))?;
    tonic_prost_build::configure().emit_rerun_if_changed(false).compile_fds_with_config(set, config)?;
    Ok(())
}
