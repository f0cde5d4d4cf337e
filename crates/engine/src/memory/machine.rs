//! How much memory the machine has left for this program.

use std::path::{Path, PathBuf};

/// Bytes that can be taken without swapping or being stopped: what the system calls available, or what the control groups of
/// this process leave, whichever is less. None where the system does not say (only Linux does).
pub fn available_bytes() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let machine =
        read(Path::new("/proc/meminfo")).and_then(|text| field(&text, "MemAvailable:")).map(|kib| kib << 10);
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let left = folders(&groups).into_iter().filter_map(|folder| left_in(&folder, &read));
    left.chain(machine).min()
}

/// The folders of the memory controllers of this process, from its own group up to the root.
fn folders(groups: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            c if c.split(',').any(|c| c == "memory") => Path::new("/sys/fs/cgroup/memory"),
            _ => continue,
        };
        let inside = Path::new(path.trim_start_matches('/'));
        out.extend(inside.ancestors().map(|folder| root.join(folder)));
    }
    out
}

/// What a control group leaves; files that are only cached count as free. Versions 2 and 1 of the interface.
fn left_in(folder: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let number = |name: &str| read(&folder.join(name))?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = read(&folder.join("memory.stat")).unwrap_or_default();
    let cached = ["inactive_file", "active_file"].iter().filter_map(|name| field(&stat, name)).sum();
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

/// The number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().map(str::split_whitespace);
    words.find_map(|mut w| (w.next() == Some(name)).then(|| w.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts() {
        assert_eq!(
            folders("0::/user/a\n"),
            ["/sys/fs/cgroup/user/a", "/sys/fs/cgroup/user", "/sys/fs/cgroup/"].map(PathBuf::from)
        );
        let old = folders("5:cpu,memory:/job\n3:pids:/x\nnonsense");
        assert_eq!(old, ["/sys/fs/cgroup/memory/job", "/sys/fs/cgroup/memory/"].map(PathBuf::from));
    }

    #[test]
    fn cached_files_count_as_free() {
        let files = |max: &'static str| {
            move |path: &Path| {
                let text = match path.file_name()?.to_str()? {
                    "memory.max" => max,
                    "memory.current" => "700\n",
                    "memory.stat" => "anon 100\ninactive_file 250\nactive_file 50\ninactive_file_x 9",
                    _ => return None,
                };
                Some(text.to_owned())
            }
        };
        assert_eq!(left_in(Path::new("/g"), &files("1000\n")), Some(600));
        assert_eq!(left_in(Path::new("/g"), &files("max\n")), None);
        assert_eq!(left_in(Path::new("/g"), &files("300\n")), Some(0));
    }
}
