"""From samples to medians, and from medians to tables."""

import statistics

# What jobs are called for people.
PATTERNS = {
    "randread": "random read",
    "randwrite": "random write",
    "seqread": "sequential read",
    "seqwrite": "sequential write",
    "mix": "70/30 mix",
}
MEDIA = {
    "disk": "Local disk",
    "tmpfs": "tmpfs, which stands for a device so fast that the server is the limit",
}
NAMES = {
    "sealblk": "sealblk",
    "qsd-luks": "qemu-storage-daemon, LUKS",
    "qsd-raw": "qemu-storage-daemon, *plain*",
    "spdk": "SPDK vhost, AES-XTS",
    "ubiblk": "ubiblk, AES-XTS",
}
MEDIANS = ("iops", "mb_per_s", "server_cpu_us_per_request", "io_wq_cpu_us_per_request")


def title(job):
    """randread-4k-32: 4k random read, depth 32."""
    pattern, block, depth = job.split("-")
    return f"{block} {PATTERNS.get(pattern, pattern)}, depth {depth}"


def name_of(backend):
    return NAMES.get(backend, backend)


def summarise(samples):
    """Medians over the rounds, one entry for each medium, job, number of queues
    and backend."""
    iops = {
        (s["medium"], s["job"], s["queues"], s["round"], s["backend"]): s["iops"] for s in samples
    }
    fewest = min(sample["queues"] for sample in samples)
    groups = {}
    for sample in samples:
        key = (sample["medium"], sample["job"], sample["queues"], sample["backend"])
        groups.setdefault(key, []).append(sample)
    summary = []
    for (medium, job, queues, backend), group in groups.items():

        def median(value):
            return statistics.median(value(sample) for sample in group)

        def ratio(other_queues, other_backend):
            others = [
                iops.get((medium, job, other_queues, s["round"], other_backend)) for s in group
            ]
            if None in others:
                return None
            return statistics.median(s["iops"] / other for s, other in zip(group, others))

        entry = {"medium": medium, "job": job, "queues": queues, "backend": backend}
        for field in MEDIANS:
            entry[field] = median(lambda sample: sample[field])
        for quantile in ("p50", "p99", "p99.9"):
            entry[quantile] = median(lambda sample: sample["latency_us"][quantile])
        share = ratio(queues, "bare")
        if share is not None:
            entry["share"] = share
        if queues != fewest:
            entry["scale"] = ratio(fewest, backend)
        peaks = [sample["peak_kib"] for sample in group if sample.get("peak_kib")]
        if peaks:
            entry["peak_kib"] = max(peaks)
        summary.append(entry)
    return summary


def cell(entry, field, form):
    value = entry.get(field)
    return "-" if value is None else form.format(value)


def table(summary):
    """The summary, for people at a terminal."""
    columns = [
        ("IOPS", "iops", "{:.0f}"),
        ("MB/s", "mb_per_s", "{:.0f}"),
        ("share", "share", "{:.2f}"),
        ("scale", "scale", "{:.2f}"),
        ("CPU us/req", "server_cpu_us_per_request", "{:.1f}"),
        ("p50 us", "p50", "{:.0f}"),
        ("p99 us", "p99", "{:.0f}"),
        ("peak KiB", "peak_kib", "{:.0f}"),
    ]
    lines = []
    form = "{:<18} {:>2} {:<12}" + " {:>10}" * len(columns)
    medium = job = None
    for entry in summary:
        if entry["medium"] != medium:
            medium, job = entry["medium"], None
            heads = [head for head, _, _ in columns]
            lines += ["", medium, form.format("job", "q", "backend", *heads)]
        cells = [cell(entry, field, numbers) for _, field, numbers in columns]
        if entry["backend"] == "bare":
            cells[4] = "-"
        shown = entry["job"] if entry["job"] != job else ""
        job = entry["job"]
        lines.append(form.format(shown, entry["queues"], entry["backend"], *cells))
    return "\n".join(lines)


def idle_table(idle):
    """What idle disks cost, for people at a terminal."""
    form = "{:<12} {:>6} {:>13} {:>16} {:>9} {:>16} {:>12}"
    heads = ("backend", "disks", "resident KiB", "proportional KiB", "own KiB", "CPU us/s", "wakes/s")
    lines = ["", "idle disks, each", form.format(*heads)]
    for entry in idle:
        memory = [f"{entry[it]:.0f}" for it in ("resident_kib", "proportional_kib", "own_kib")]
        cpu = [f"{entry['cpu_us_per_second']:.1f}", f"{entry['switches_per_second']:.2f}"]
        lines.append(form.format(entry["backend"], entry["disks"], *memory, *cpu))
    return "\n".join(lines)


def slower(summary, pairs):
    """The comparisons of --expect-faster that do not hold."""
    iops = {(e["medium"], e["job"], e["queues"], e["backend"]): e["iops"] for e in summary}
    found = []
    for fast, slow in pairs:
        for (medium, job, queues, backend), value in iops.items():
            other = iops.get((medium, job, queues, slow))
            if backend == fast and other is not None and value <= other:
                found.append(f"{medium}, {job}: {fast} {value:.0f}, {slow} {other:.0f} IOPS")
    return found


def _row(cells):
    return "| " + " | ".join(cells) + " |"


def _grid(head, rows):
    return "\n".join([_row(head), _row(["---"] * len(head)), *map(_row, rows)])


def markdown(report):
    """All of a report as tables for a document."""
    summary = report["summary"]
    parts = []
    for medium in dict.fromkeys(entry["medium"] for entry in summary):
        of_medium = [entry for entry in summary if entry["medium"] == medium]
        fewest = min(entry["queues"] for entry in of_medium)
        one = [entry for entry in of_medium if entry["queues"] == fewest]
        parts += [f"{MEDIA.get(medium, medium)}:", _shares(one)]
        parts += ["p99 latency in µs, and the most memory that was resident:", _latencies(one)]
        more = [entry for entry in of_medium if entry["queues"] != fewest]
        if more:
            one_queue = "1 queue" if fewest == 1 else f"{fewest} queues"
            parts += [f"IOPS as multiples of those with {one_queue}:", _scales(more)]
    if report.get("idle"):
        first = report["idle"][0]
        disks, queues = first["disks"], first["queues"]
        text = f"{disks} disks, each with a front end of {queues} queues that does nothing:"
        parts += [text, _idle(report["idle"])]
    about = report["environment"]
    known = [about["cpu"], f"{about['cpus']} CPUs", f"Linux {about['kernel']}", about["qemu"]]
    parts.append("Machine: " + "; ".join(word for word in known if word) + ".")
    parts.append(f"    {about['command']}")
    return "\n\n".join(parts) + "\n"


def _by_job(entries):
    jobs = {}
    for entry in entries:
        jobs.setdefault((entry["job"], entry["queues"]), {})[entry["backend"]] = entry
    return jobs


def _servers(entries):
    return [name for name in dict.fromkeys(e["backend"] for e in entries) if name != "bare"]


def _shares(entries):
    servers = _servers(entries)
    rows = []
    for (job, _), of_job in _by_job(entries).items():
        bare = of_job.get("bare")
        cells = [title(job), f"{bare['iops']:,.0f}" if bare else "-"]
        for server in servers:
            entry = of_job.get(server, {})
            share = cell(entry, "share", "{:.2f}") if bare else cell(entry, "iops", "{:,.0f}")
            cells.append(f"{share} · {cell(entry, 'server_cpu_us_per_request', '{:.1f}')}")
        rows.append(cells)
    return _grid(["job", "bare: IOPS", *map(name_of, servers)], rows)


def _latencies(entries):
    backends = list(dict.fromkeys(entry["backend"] for entry in entries))
    rows = []
    for (job, _), of_job in _by_job(entries).items():
        cells = [cell(of_job.get(backend, {}), "p99", "{:,.0f}") for backend in backends]
        rows.append([title(job), *cells])
    peaks = {}
    for entry in entries:
        if entry.get("peak_kib"):
            peaks[entry["backend"]] = max(entry["peak_kib"], peaks.get(entry["backend"], 0))
    memory = [f"{peaks[it] / 1024:.1f} MiB" if it in peaks else "-" for it in backends]
    rows.append(["*memory, at most*", *memory])
    return _grid(["job", *map(name_of, backends)], rows)


def _scales(entries):
    backends = list(dict.fromkeys(entry["backend"] for entry in entries))
    rows = []
    for (job, queues), of_job in _by_job(entries).items():
        cells = [cell(of_job.get(backend, {}), "scale", "{:.2f}") for backend in backends]
        rows.append([title(job), str(queues), *cells])
    return _grid(["job", "queues", *map(name_of, backends)], rows)


def _idle(idle):
    head = ["server", "resident, MiB", "its part of what is shared", "its own", "CPU, µs/s", "wake-ups/s"]
    rows = []
    for entry in idle:
        memory = [f"{entry[it] / 1024:.1f}" for it in ("resident_kib", "proportional_kib", "own_kib")]
        cpu = [f"{entry['cpu_us_per_second']:.1f}", f"{entry['switches_per_second']:.2f}"]
        rows.append([name_of(entry["backend"]), *memory, *cpu])
    return _grid(head, rows)
