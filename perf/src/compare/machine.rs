//! What the machine is, as far as figures need it.

/// A sentence: processor, cores, memory, kernel.
pub fn describe() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| -> String {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let virtualised = if field(&cpu, "flags").contains("hypervisor") { " virtual" } else { "" };
    let kib: u64 =
        field(&memory, "MemTotal").trim_end_matches(" kB").trim().parse().unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel: String = kernel.trim().chars().take_while(|c| *c != '-').collect();
    format!(
        "{}, {cores}{virtualised} cores, {} GiB, Linux {kernel}",
        field(&cpu, "model name"),
        kib.div_ceil(1 << 20)
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_machine_has_cores_and_memory() {
        let text = super::describe();
        assert!(text.contains("cores") && !text.contains(" 0 GiB"), "{text}");
    }
}
