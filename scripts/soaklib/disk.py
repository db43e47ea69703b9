"""A disk of a run."""

import json

from soaklib.site import Wrong


class Disk:
    """A volume, how it is served, and who uses it."""

    def __init__(self, site, short, size, key_set="prod", store=None, detached=False, sector=512):
        self.site = site
        self.short = short
        # On storage that all hosts have.
        self.volume = site.shared / f"{short}.img"
        self.header = site.shared / f"{short}.header" if detached else None
        self.key_set = key_set
        self.store = store
        self.uuid = None
        self.size = size
        self.sector = sector
        self.load = None
        self.is_frozen = False
        self.is_out = False

    @property
    def name(self):
        return self.site.prefix + self.short

    @property
    def socket(self):
        return self.site.path(f"{self.short}.sock")

    def run(self, *words, may=()):
        """A command on the host that the disk is attached to."""
        return self.site.run(*words, may=may)

    def header_words(self):
        return ["--header", self.header] if self.header else []

    def create(self):
        words = ["--key-set", self.key_set, "--size", self.size, "--header-area", "512K"]
        words += ["--sector-size", self.sector, "--zero-units", *self.header_words()]
        if self.store:
            words += ["--key-store", self.store]
        made = self.site.run("volume", "create", *words, "--json", self.volume)[1]
        self.uuid = json.loads(made)["uuid"]

    def attach_words(self, site):
        """How it is attached on that host."""
        words = ["--socket", site.path(f"{self.short}.sock"), "--name", site.prefix + self.short]
        return [self.volume, *self.header_words(), *words, "--queues", 2, "--iops-total", 1500]

    def attach(self, *more, may=()):
        """The status of the command."""
        return self.site.run("attach", *self.attach_words(self.site), *more, may=may)[0]

    def show(self):
        shown = self.site.disk(self.name)
        if shown is None:
            raise Wrong(f"{self.short} is not on the manager's record")
        return shown

    def answered(self):
        """How many requests of its front ends were answered."""
        wanted = f'sealblk_disk_io_requests_total{{disk="{self.name}"'
        lines = self.site.text("/metrics").splitlines()
        return sum(int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(wanted))

    def about(self):
        kind = "" if self.header is None else ", detached header"
        store = "" if self.store is None else f", key store {self.store}"
        return f"{self.short}: {self.size >> 20} MiB, key set {self.key_set}{kind}{store}"
