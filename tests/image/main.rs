//! The image recipe: what is in the archives it makes, and what it refuses.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use quarry_tests::cache;
use quarry_tests::command::{Command, Outcome};
use quarry_tests::process;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The recipe with these arguments, to its end. The first driver image downloads Debian's packages.
fn build(arguments: &[&str]) -> Outcome {
    let recipe = cache::workspace().join("manifests/image/build");
    process::run(&Command::new(recipe).args(arguments), Duration::from_secs(600)).unwrap()
}

/// What an archive has.
struct Archive {
    files: BTreeMap<String, Vec<u8>>,
    manifest: Value,
}

impl Archive {
    fn read(path: &Path) -> Self {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(std::fs::File::open(path).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(entry.path().unwrap().to_str().unwrap().to_owned(), bytes);
        }
        let manifest = serde_json::from_slice(&files["manifest.json"]).unwrap();
        Self { files, manifest }
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&self.files[self.manifest[0]["Config"].as_str().unwrap()]).unwrap()
    }

    fn layers(&self) -> Vec<&[u8]> {
        let names = self.manifest[0]["Layers"].as_array().unwrap();
        names.iter().map(|name| self.files[name.as_str().unwrap()].as_slice()).collect()
    }

    /// Every path of all layers, with what a symbolic link points to, with mode and owner.
    fn entries(&self) -> BTreeMap<String, (Option<String>, u32, u64)> {
        let mut entries = BTreeMap::new();
        for layer in self.layers() {
            for entry in tar::Archive::new(layer).entries().unwrap() {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().to_str().unwrap().trim_start_matches("./").to_owned();
                let link = entry.link_name().unwrap().map(|target| target.to_str().unwrap().to_owned());
                let header = entry.header();
                assert_eq!(header.mtime().unwrap(), 0, "{path}");
                entries.insert(path, (link, header.mode().unwrap(), header.uid().unwrap() + header.gid().unwrap()));
            }
        }
        entries
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_image_of_one_program_says_what_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let (program, out) = (scratch.path().join("hello"), scratch.path().join("a/hello.tar"));
    std::fs::write(&program, "program").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let file = format!("{}:/bin/hello", program.display());
    let arguments = [
        "--base",
        "none",
        "--out",
        out.to_str().unwrap(),
        "--tag",
        "localhost/hello:1",
        "--file",
        &file,
        "--link",
        "hello:/bin/hi",
        "--env",
        "PATH=/bin",
        "--entrypoint",
        "/bin/hello",
        "--cmd",
        "a",
        "--cmd",
        "b c",
    ];
    build(&arguments).success().unwrap();
    let archive = Archive::read(&out);
    assert_eq!(archive.manifest[0]["RepoTags"], json!(["localhost/hello:1"]));
    let config = archive.config();
    let expected = json!({
        "Env": ["PATH=/bin"], "Entrypoint": ["/bin/hello"], "Cmd": ["a", "b c"], "WorkingDir": "/",
    });
    assert_eq!((&config["config"], &config["os"]), (&expected, &json!("linux")));
    // A runtime refuses an image whose digests are wrong.
    let [layer] = archive.layers()[..] else { panic!("not one layer") };
    assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", digest(layer))]));
    let config_name = archive.manifest[0]["Config"].as_str().unwrap();
    assert_eq!(config_name, format!("{}.json", digest(&archive.files[config_name])));
    let entries = archive.entries();
    assert_eq!(entries["bin/hello"], (None, 0o755, 0));
    assert_eq!(entries["bin/hi"].0.as_deref(), Some("hello"));
    // The same again, byte for byte, whatever the time and the name of the output.
    let again = scratch.path().join("again.tar");
    build(&arguments.map(|word| if word == out.to_str().unwrap() { again.to_str().unwrap() } else { word }))
        .success()
        .unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn the_drivers_image_has_what_the_driver_runs_and_no_shell() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("driver.tar");
    // Any program that runs on Debian 12 stands for Quarry's own: this is about what surrounds them.
    build(&["--out", out.to_str().unwrap(), "--binary", "/usr/bin/true", "--reporter", "/usr/bin/true"])
        .success()
        .unwrap();
    let archive = Archive::read(&out);
    let config = archive.config();
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/quarry-driver"]));
    assert_eq!(config["config"]["Cmd"], json!(["run"]));
    assert_eq!(
        archive.manifest[0]["RepoTags"],
        json!([format!("localhost/quarry-driver:{}", env!("CARGO_PKG_VERSION"))])
    );
    assert_eq!(
        archive.layers().len(),
        2,
        "Debian's programs and Quarry's: new ones of these leave the larger layer as it is"
    );
    let entries = archive.entries();
    // driver/src/exec/tools.rs; thin_check is what lvm runs before it activates a pool.
    let tools = std::fs::read_to_string(cache::workspace().join("driver/src/exec/tools.rs")).unwrap();
    let programs: BTreeSet<&str> = tools
        .lines()
        .filter_map(|line| line.trim().split_once(" = \"")?.1.split_once("\", \"").map(|(name, _)| name))
        .collect();
    assert!(programs.contains("lvm") && programs.contains("mkfs.xfs"), "{programs:?}");
    for program in programs.into_iter().chain(["thin_check", "quarry-driver", "quarry-capacity-reporter"]) {
        let places = ["usr/sbin", "usr/bin"].map(|folder| format!("{folder}/{program}"));
        assert!(places.iter().any(|place| entries.contains_key(place)), "no {program}");
    }
    for (path, (link, mode, owner)) in &entries {
        let name = path.rsplit('/').next().unwrap();
        assert!(!["sh", "bash", "dash", "perl", "python3", "apt", "dpkg", "busybox"].contains(&name), "{path}");
        assert_eq!((*owner, mode & 0o6000), (0, 0), "{path} has an owner or a set-id bit");
        if let (Some(target), true) = (link, path.starts_with("usr/sbin/")) {
            assert!(entries.contains_key(&format!("usr/sbin/{target}")), "{path} -> {target} hangs");
        }
    }
    // Scanners for vulnerabilities and licences find the packages.
    for package in ["lvm2", "libc6", "e2fsprogs"] {
        assert!(entries.contains_key(&format!("var/lib/dpkg/status.d/{package}")), "{package}");
        assert!(entries.contains_key(&format!("usr/share/doc/{package}/copyright")), "{package}");
    }
}

#[test]
fn a_mistake_is_named_and_leaves_no_file() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("x.tar");
    let out_text = out.to_str().unwrap();
    let broken = scratch.path().join("broken");
    std::fs::write(&broken, "#!/nowhere/interpreter\n").unwrap();
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let broken_text = broken.to_str().unwrap();
    for (arguments, named) in [
        (&["--out"][..], "`--out` needs a value"),
        (&["--tag", "a"], "--out FILE is missing"),
        (&["--out", out_text, "--base", "alpine"], "--base is `alpine`, must be debian or none"),
        (&["--out", out_text, "--frob", "1"], "unknown option `--frob`"),
        (&["--out", out_text, "--base", "none", "--tag", "a"], "needs at least one --file"),
        (&["--out", out_text, "--base", "none", "--file", "/bin/true:/t"], "--base none needs --tag NAME"),
        (
            &["--out", out_text, "--base", "none", "--tag", "a", "--file", "/no/such:/t"],
            "--file `/no/such` does not exist",
        ),
        (&["--out", out_text, "--base", "none", "--tag", "a", "--file", "/bin/true"], "is not SOURCE:/DEST"),
        (&["--out", out_text, "--base", "none", "--tag", "a\"b", "--file", "/bin/true:/t"], "has a quote"),
        (&["--out", out_text, "--file", "/bin/true:/t"], "--file and --link go with --base none"),
        (&["--out", out_text, "--binary", "/usr/bin/true"], "--binary and --reporter go together"),
        (
            &["--out", out_text, "--binary", "/no/such", "--reporter", "/usr/bin/true"],
            "`/no/such` is no executable file",
        ),
        (
            &["--out", out_text, "--binary", "/usr/bin/true", "--reporter", "/no/such"],
            "`/no/such` is no executable file",
        ),
        (
            &["--out", out_text, "--binary", broken_text, "--reporter", "/usr/bin/true"],
            "quarry-driver does not run on Debian",
        ),
        (
            &["--out", out_text, "--binary", "/usr/bin/true", "--reporter", broken_text],
            "reporter does not run on Debian",
        ),
    ] {
        let said = build(arguments);
        assert!(!said.exit.success() && said.stderr_text().contains(named), "{arguments:?}: {}", said.stderr_text());
        assert!(!out.exists(), "{arguments:?}");
    }
}
