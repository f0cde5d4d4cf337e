//! How many threads the pool has where nobody says.

use std::collections::BTreeSet;
use std::path::Path;

/// rayon's own switch, which goes before what is counted here.
const SWITCH: &str = "RAYON_NUM_THREADS";

/// One for each core that this process may use: the arithmetic fills a core, a second thread on it only takes its cache.
/// Limits of control groups (versions 1 and 2) hold, as the standard library reads them. None leaves it to the pool.
pub fn usual() -> Option<usize> {
    if std::env::var_os(SWITCH).is_some() {
        return None;
    }
    let allowed = std::thread::available_parallelism().ok()?.get();
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    Some(cores(&read).map_or(allowed, |cores| cores.clamp(1, allowed)))
}

/// Cores among the processors that this process may run on; None where the system does not say (only Linux does).
fn cores(read: &dyn Fn(&Path) -> Option<String>) -> Option<usize> {
    let status = read(Path::new("/proc/self/status"))?;
    let list = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?;
    let siblings = |cpu: usize| {
        read(Path::new(&format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")))
    };
    let cores: Option<BTreeSet<String>> = cpus(list)?.into_iter().map(siblings).collect();
    cores.map(|cores| cores.len()).filter(|n| *n > 0)
}

/// The numbers of a list such as `0-3,8`.
fn cpus(list: &str) -> Option<Vec<usize>> {
    let mut out = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        out.extend(first.parse::<usize>().ok()?..=last.parse().ok().filter(|n| *n < 1 << 16)?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four cores with two threads each, n and n + 4.
    fn machine(allowed: &str) -> impl Fn(&Path) -> Option<String> {
        let status = format!("Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t{allowed}\n");
        move |path: &Path| match path.to_str()? {
            "/proc/self/status" => Some(status.clone()),
            path => {
                let cpu = path
                    .strip_prefix("/sys/devices/system/cpu/cpu")?
                    .split('/')
                    .next()?
                    .parse::<usize>()
                    .ok()?;
                (cpu < 8).then(|| format!("{},{}\n", cpu % 4, cpu % 4 + 4))
            }
        }
    }

    #[test]
    fn threads_of_one_core_count_once() {
        for (allowed, want) in [
            ("0-7", Some(4)),
            ("0-3", Some(4)),
            ("0,4", Some(1)),
            ("1-2,5", Some(2)),
            ("0-8", None),
            ("x", None),
        ] {
            assert_eq!(cores(&machine(allowed)), want, "{allowed}");
        }
        assert_eq!(cores(&|_| None), None);
    }

    #[test]
    fn there_is_at_least_one_thread_and_no_more_than_may_run() {
        let allowed = std::thread::available_parallelism().expect("known").get();
        assert!(usual().is_none_or(|n| (1..=allowed).contains(&n)));
    }
}
