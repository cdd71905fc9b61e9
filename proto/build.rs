//! Compiles the `.proto` files with a protobuf compiler written in Rust: no `protoc` on the machine.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/csi.proto", "proto/registration.proto", "proto/admin.proto", "proto/capacity.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    let set = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?).join("descriptors.bin");
    std::fs::write(set, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // What a capability does not announce is answered UNIMPLEMENTED.
        .generate_default_stubs(true)
        .compile_fds(descriptors)?;
    Ok(())
}
