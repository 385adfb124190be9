//! TPUs: libtpu, and the chips that it drives.

use std::env;
use std::fs;
use std::path::Path;

use super::{Absence, Build, Member, Platform, Wheel, has_numbered};

pub(super) static TPU: Platform = Platform {
    name: "tpu",
    // The second is libtpu's own convention.
    variables: &["BERT_XLA_TPU_PLUGIN", "TPU_LIBRARY_PATH"],
    plugin: Member {
        wheel: Wheel {
            package: "libtpu",
            version: "0.0.52",
            python: Some("3.11"),
            builds: &[Build {
                machine: "x86_64",
                platform: "manylinux_2_31_x86_64",
                sha256: "f5e2e596eaea9357fbb5a6755a7a9007c6ab75bfde4a55191b03eff402971140",
            }],
        },
        path: "libtpu/libtpu.so",
        file: "libtpu.so",
    },
    tools: &[],
    libraries: &[],
    probe,
    environment,
};

/// Google's number among the vendors of PCI devices. Its network cards have it too.
const GOOGLE: &str = "0x1ae0";

/// A chip by the id of its PCI device.
struct Chip {
    id: &'static str,
    name: &'static str,
    /// Its runtime starts and ends much faster with transparent huge pages.
    wants_huge_pages: bool,
}

const fn chip(id: &'static str, name: &'static str, wants_huge_pages: bool) -> Chip {
    Chip { id, name, wants_huge_pages }
}

/// As JAX 0.12 knows them (`jax/_src/hardware_utils.py` and `cloud_tpu_init.py`).
const CHIPS: [Chip; 9] = [
    chip("0x0027", "TPU v2 or v3", false),
    chip("0x0056", "TPU", false),
    chip("0x005e", "TPU v4", false),
    chip("0x0062", "TPU v5p", false),
    chip("0x0063", "TPU v5e", true),
    chip("0x006f", "TPU v6e", true),
    chip("0x0076", "TPU7x", true),
    chip("0x0083", "TPU 8i", true),
    chip("0x007c", "TPU 8t", true),
];

/// A TPU is a PCI device of Google's, by its id, and a device node. A node alone may be another vendor's accelerator, or
/// another device that is passed through; an id that isn't known may be a network card's.
fn probe(root: &Path) -> Result<(), Absence> {
    let ids = google_devices(root);
    let Some(chip) = known(&ids) else {
        let seen = match ids.as_slice() {
            [] => "no PCI device of Google's".to_owned(),
            ids => format!("of Google's PCI devices, {}, none is known as one", ids.join(", ")),
        };
        return Err(Absence::Missing(format!("no TPU on this machine ({seen})")));
    };
    // Up to v4, and from v5e on.
    if has_numbered(&root.join("dev"), "accel") || has_numbered(&root.join("dev/vfio"), "") {
        return Ok(());
    }
    Err(Absence::Closed(format!(
        "no TPU to open on this machine (a {} is there, but no /dev/accel0 and no /dev/vfio/0: a container \
         needs --privileged)",
        chip.name
    )))
}

/// The device ids of Google's PCI devices, sorted; each once. The kernel tells them in containers as well.
fn google_devices(root: &Path) -> Vec<String> {
    let devices = fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten();
    let read = |device: &Path, file| {
        let text = fs::read_to_string(device.join(file)).unwrap_or_default();
        text.trim().to_owned()
    };
    let mut ids = devices
        .map(|device| device.path())
        .filter(|device| read(device, "vendor") == GOOGLE)
        .map(|device| read(&device, "device"))
        .collect::<Vec<_>>();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The chip that one of these PCI devices is.
fn known(ids: &[String]) -> Option<&'static Chip> {
    CHIPS.iter().find(|chip| ids.iter().any(|id| id == chip.id))
}

/// Says how to turn on transparent huge pages where the chip wants them and the kernel has them, but doesn't give them to
/// all.
pub(in crate::pjrt) fn huge_pages_advice(root: &Path) -> Option<String> {
    const FILE: &str = "sys/kernel/mm/transparent_hugepage/enabled";
    let wanted = known(&google_devices(root)).filter(|chip| chip.wants_huge_pages)?;
    let enabled = fs::read_to_string(root.join(FILE)).ok()?;
    (!enabled.starts_with("[always]")).then(|| {
        format!(
            "transparent huge pages are off: with them, a {} starts and ends faster; sudo sh -c \"echo always > /{FILE}\"",
            wanted.name
        )
    })
}

/// Without a TPU, libtpu compiles ahead of time: these keep it from asking a metadata server where it is, and from
/// locking out other processes, which it does to share no chip with them.
fn environment(_: &Path) -> Vec<(&'static str, String)> {
    if probe(Path::new("/")).is_ok() {
        return Vec::new();
    }
    // Any accelerator type will do: the topology that a program is compiled for says which chips it has.
    let variables = [
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v3-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ];
    let unset = variables.into_iter().filter(|(name, _)| env::var_os(name).is_none());
    unset.map(|(name, value)| (name, value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine;
    use super::*;

    const NONE: &str = "no TPU on this machine (no PCI device of Google's)";

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: Result<(), &str>) {
        let root = machine(files);
        let found = probe(root.path()).map_err(|absence| absence.to_string());
        assert_eq!(found, expected.map_err(str::to_owned), "{files:?}");
    }

    fn pci<'a>(vendor: &'a str, id: &'a str) -> [(&'static str, &'a str); 2] {
        [("sys/bus/pci/devices/0000:00:04.0/vendor", vendor), ("sys/bus/pci/devices/0000:00:04.0/device", id)]
    }

    #[test]
    fn a_chip_of_googles_with_a_device_node_is_a_tpu() {
        for Chip { id, .. } in CHIPS {
            for node in ["dev/accel0", "dev/accel3", "dev/vfio/0", "dev/vfio/12"] {
                check(&[&pci("0x1ae0\n", id)[..], &[(node, "")]].concat(), Ok(()));
            }
        }
    }

    #[test]
    fn others_devices_are_no_tpu() {
        check(&[], Err(NONE));
        for node in ["dev/accel0", "dev/accel/accel0", "dev/vfio/0"] {
            check(&[(node, "")], Err(NONE));
            // Intel, AMD, Habana; the id is a TPU's, in another vendor's numbering.
            for vendor in ["0x8086", "0x1022", "0x1da3"] {
                check(&[&pci(vendor, "0x0063")[..], &[(node, "")]].concat(), Err(NONE));
            }
            let expected = "no TPU on this machine (of Google's PCI devices, 0x0042, none is known as one)";
            check(&[&pci("0x1ae0", "0x0042")[..], &[(node, "")]].concat(), Err(expected));
        }
    }

    #[test]
    fn a_chip_that_cant_be_opened_is_told() {
        let expected = "no TPU to open on this machine (a TPU v5e is there, but no /dev/accel0 and no /dev/vfio/0: \
                        a container needs --privileged)";
        check(&pci("0x1ae0", "0x0063"), Err(expected));
        // What VFIO has of its own, and the folder of other vendors' nodes.
        for node in ["dev/vfio/vfio", "dev/accel/accel0"] {
            check(&[&pci("0x1ae0", "0x0063")[..], &[(node, "")]].concat(), Err(expected));
        }
    }

    #[test]
    fn huge_pages_are_advised_where_the_chip_wants_them_and_they_are_off() {
        const FILE: &str = "sys/kernel/mm/transparent_hugepage/enabled";
        let advice = |id: &str, enabled: &str| {
            huge_pages_advice(machine(&[&pci("0x1ae0", id)[..], &[(FILE, enabled)]].concat()).path())
        };
        for enabled in ["always [madvise] never\n", "always madvise [never]\n"] {
            let said = advice("0x0063", enabled).unwrap();
            assert!(
                said.contains("a TPU v5e starts") && said.contains(&format!("echo always > /{FILE}")),
                "{said}"
            );
            assert_eq!(advice("0x0062", enabled), None);
            assert_eq!(advice("0x0042", enabled), None);
        }
        assert_eq!(advice("0x0063", "[always] madvise never\n"), None);
        assert_eq!(huge_pages_advice(machine(&pci("0x1ae0", "0x0063")).path()), None);
    }
}
