# SPDX-License-Identifier: MIT
"""The architectures of guests: one record for each, with everything in which their guests differ.

The host is x86_64: QEMU and the other tools are programs of that architecture, so an arm64 guest is always emulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from crash_hotplug.core.finding import Kind
from crash_hotplug_lab.qemu.errors import LabError

_MIB = 1 << 20


@dataclass(frozen=True)
class Source:
    """The Debian releases of a known kernel and of the guest's userland."""

    release: str
    """Debian release of the guest's userland."""
    suite: str = ""
    """Suite of the kernel, if it is another one."""
    series: str = ""
    """Series of the kernel, if its key is more than that."""
    flavour: str = ""
    """Flavour of the kernel's package, if it is not the one for cloud guests."""
    plugs_dimms: bool = True
    """Whether the kernel takes DIMMs (CONFIG_ACPI_HOTPLUG_MEMORY)."""
    is_built: bool = False
    """Whether the lab builds the kernel, with CONFIG_KEXEC_FILE, from the source package."""
    options: tuple[str, ...] = ()
    """More lines of the configuration of a kernel that the lab builds."""
    patches: tuple[str, ...] = ()
    """Files in ``qemu/patches`` that are applied to the source of a kernel that the lab builds, in this order."""
    corrects: tuple[Kind, ...] = ()
    """Kinds of findings that the patches correct: no dump has them whose header the kernel updated."""
    rewrites_headers: bool = False
    """Whether a patch makes the kernel write the header of each image for hot-plug anew inside kexec_load."""
    block_size: int = 0
    """Bytes in a memory block of a guest with less than 64 GiB, if not those of the architecture."""
    has_crash_hotplug: bool = False
    """Whether a patch makes the kernel update the elfcorehdr by itself, where the architecture's kernels do not."""


@dataclass(frozen=True)
class GuestArchitecture:
    """An architecture that the lab has guests of."""

    name: str
    """The word after ``--arch``."""
    debian: str
    """Debian's name for it."""
    kernels: Mapping[str, Source]
    """The kernels by key; the newest version in the suite is fetched, recorded and reported."""
    triplet: str
    """Directory of its libraries below ``lib``."""
    dynamic_loader: str
    """Path of ld.so in a guest, relative to its root."""
    packages: tuple[str, ...]
    """Packages of the host's tools: QEMU, its firmware, and makedumpfile where it runs on the host."""
    unneeded: tuple[str, ...]
    """Patterns of large files in those packages that nothing needs."""
    user_emulator: str
    """QEMU's program that runs programs of this architecture on the host; empty where none is needed."""
    qemu: str
    """Program of QEMU."""
    firmware: str
    """Image of the firmware below ``/usr/share``; empty for QEMU's own choice."""
    machine: Callable[[tuple[int, int], bool, bool], list[str]]
    """Return QEMU's options for machine and CPU model.

    Parameters: the kernel's series, whether hardware virtualisation is used, whether the clock counts instructions.
    """
    topology: str
    """What follows the number of CPUs in QEMU's option ``-smp``."""
    plugs_cpus: bool
    """Whether QEMU can plug a CPU into a running guest."""
    disk: str
    """Options of the disk's device."""
    console: str
    agent_port: str
    """Devices of the first and of the second serial port."""
    crashkernel: int
    """Bytes that a guest reserves for the capture kernel."""
    capture_append: str
    """The capture kernel's command line.  Without acpi_no_memhotplug it adds the DIMMs to itself, and its own
    RAM cannot be read as a dump."""
    crash_hotplug_since: tuple[int, int] | None
    """Series of the first kernel that updates the elfcorehdr by itself (CONFIG_CRASH_HOTPLUG); None without any."""
    distribution_loader: str
    """Option of kexec for Debian's kernels: ``s`` where they have kexec_file_load."""
    text_start: int
    """Lowest virtual address of kernel text in a vmcore; the direct mapping of RAM is below."""
    program_counter: str
    """Name of the instruction pointer in QEMU's ``info registers``."""
    register_count: int
    """64-bit words of ``pr_reg`` in struct elf_prstatus."""
    busy_registers: tuple[int, ...]
    """Places in ``pr_reg`` of the registers 8 to 15, which a busy CPU holds (in_guest/agent.py)."""
    in_kernel: Callable[[Sequence[int]], bool]
    """Say whether ``pr_reg`` was saved in kernel mode."""
    unmaps_image_before: tuple[int, int]
    """Series of the first kernel that does not unmap the loaded image; before it a snapshot lacks the image's files."""
    time_factor: int
    """How much longer a run may take than its scenario says; an architecture other than the host's is emulated."""
    reads_gone_memory: bool
    """Whether a read of physical memory that is not there returns anything; otherwise it aborts the capture kernel's
    copy, so a header that describes removed memory makes the whole vmcore unreadable."""
    large_blocks_before: tuple[int, int]
    """Series of the first kernel whose memory blocks are not 1 GiB on a guest with less than 64 GiB."""
    image_name: str
    """Kind of its kernel images, for messages."""
    release_of: Callable[[bytes], str | None]
    """Return the release of a kernel's image; None where it is no image for this architecture."""
    compiler: str
    """Package of the compiler that builds its kernels."""
    cross_compile: str
    """Prefix of that compiler's programs (CROSS_COMPILE)."""
    built_image: str
    """Path of the image in a built kernel's tree; its last component is the target of make."""

    def in_cache(self, name: str) -> str:
        """Return the name of a directory in the cache; the names of x86_64 have no suffix."""
        return name if self is X86_64 else f"{name}-{self.name}"

    def kernel_name(self, key: str) -> str:
        """Return the name of a kernel in results, which is its key on x86_64 and ``arm64-6.1`` elsewhere."""
        return key if self is X86_64 else f"{self.name}-{key}"

    def block_size(self, series: tuple[int, int]) -> int:
        """Return the bytes in a memory block of a guest with less than 64 GiB."""
        return 1024 * _MIB if series < self.large_blocks_before else 128 * _MIB


CPU_MODEL = "Haswell-noTSX-IBRS"
"""Not ``max``: with 5-level paging the jump into the capture kernel resets the machine under emulation."""
_NOT_EMULATED = ",-pcid,-tsc-deadline,-invpcid,-spec-ctrl"
"""Features of that model that QEMU's emulation lacks; QEMU warns about each on every start unless it is disabled."""


def _q35(series: tuple[int, int], kvm: bool, counts_instructions: bool) -> list[str]:
    cpu, machine, extra = CPU_MODEL if kvm else CPU_MODEL + _NOT_EMULATED, "q35", []
    if series >= (6, 12) and not counts_instructions:  # QEMU's vmport cannot count
        # From late 2025 on Linux ignores disabled CPUs in the MADT unless it sees a hypervisor it knows
        cpu, machine = f"{cpu},-hypervisor", "q35,vmport=on"
        extra = ["-smbios", "type=1,serial=VMware-42"]
    return ["-machine", machine, "-cpu", cpu, *extra]


def _virt(series: tuple[int, int], kvm: bool, counts_instructions: bool) -> list[str]:
    # neoverse-n1 has pages of 4, 16 and 64 KiB; cortex-a57 lacks 16.  DIMMs are plugged through ACPI, so through UEFI.
    return ["-machine", "virt,gic-version=3,acpi=on", "-cpu", "neoverse-n1"]


def _release_of_bzimage(image: bytes) -> str | None:
    """Documentation/arch/x86/boot.rst."""
    if image[0x202:0x206] != b"HdrS":
        return None
    text = int.from_bytes(image[0x20E:0x210], "little") + 0x200
    return image[text : text + 256].split(b"\0")[0].split(b" ")[0].decode(errors="replace")


def _release_of_arm64_image(image: bytes) -> str | None:
    """Documentation/arch/arm64/booting.rst; the header has no release, which init/version.c has in its banner."""
    if image[0x38:0x3C] != b"ARM\x64":
        return None
    banner = image.find(b"Linux version ")
    return None if banner < 0 else image[banner : banner + 256].split(b" ")[2].decode(errors="replace")


X86_64 = GuestArchitecture(
    name="x86_64",
    debian="amd64",
    kernels={
        "5.10": Source("bullseye"),
        "6.1": Source("bookworm"),
        "6.12": Source("trixie"),
        "6.17": Source("trixie", "trixie-backports"),
        "6.18": Source("trixie", "trixie-backports"),
        "7.2": Source("sid"),
        "7.3": Source("trixie", "trixie-backports"),
        "7.2b": Source("trixie", "trixie-backports", series="7.2", is_built=True),
        "7.2p": Source(
            "trixie",
            "trixie-backports",
            series="7.2",
            is_built=True,
            patches=("x86-leave-out-offline-memory.patch", "x86-keep-backup-region.patch"),
            corrects=(Kind.MEMORY_GONE, Kind.BACKUP_REGION_DROPPED),
        ),
        "7.2n": Source(
            "trixie",
            "trixie-backports",
            series="7.2",
            is_built=True,
            patches=("normalise-at-load.patch",),
            rewrites_headers=True,
        ),
    },
    triplet="x86_64-linux-gnu",
    dynamic_loader="usr/lib64/ld-linux-x86-64.so.2",
    packages=("qemu-system-x86", "makedumpfile"),
    unneeded=(),
    user_emulator="",
    qemu="qemu-system-x86_64",
    firmware="",
    machine=_q35,
    topology=",sockets=8,cores=1,threads=1,maxcpus=8",
    plugs_cpus=True,
    disk="virtio-blk-pci,drive=dump",
    console="ttyS0",
    agent_port="ttyS1",
    crashkernel=192 * _MIB,
    # no_timer_check: a panic on a CPU other than 0 hangs the capture kernel in its timer check, under emulation
    capture_append="console=ttyS0 quiet irqpoll nr_cpus=1 reset_devices panic=1 rdinit=/init no_timer_check "
    "acpi_no_memhotplug",
    crash_hotplug_since=(6, 6),
    distribution_loader="s",
    text_start=0xFFFFFFFF_80000000,
    program_counter="RIP",
    register_count=27,
    busy_registers=(9, 8, 7, 6, 3, 2, 1, 0),  # struct user_regs_struct: r15 is the first
    in_kernel=lambda pr_reg: pr_reg[17] & 3 == 0,  # privilege level of cs
    unmaps_image_before=(0, 0),
    time_factor=1,
    reads_gone_memory=True,
    large_blocks_before=(0, 0),
    image_name="x86 kernel image (bzImage)",
    release_of=_release_of_bzimage,
    compiler="gcc",
    cross_compile="",
    built_image="arch/x86/boot/bzImage",
)

ARM64 = GuestArchitecture(
    name="arm64",
    debian="arm64",
    kernels={
        "5.10": Source("bookworm", "bullseye"),
        "6.1": Source("bookworm"),
        "6.12": Source("trixie"),
        "6.12-16k": Source("trixie", series="6.12", flavour="arm64-16k", plugs_dimms=False),
        "7.2": Source("trixie", "sid"),
        "6.1f": Source("bookworm", series="6.1", is_built=True),
        "6.12f": Source("trixie", series="6.12", is_built=True),
        "6.12-64kf": Source(
            "trixie",
            series="6.12",
            is_built=True,
            options=("CONFIG_ARM64_64K_PAGES=y", "CONFIG_ARM64_VA_BITS_48=y"),
            block_size=512 * _MIB,  # SECTION_SIZE_BITS is 29
        ),
        "7.2hf": Source(
            "trixie",
            "trixie-backports",
            series="7.2",
            is_built=True,
            patches=("arm64-crash-hotplug-one-block.patch",),
            options=("CONFIG_CRASH_HOTPLUG=y",),
            has_crash_hotplug=True,
        ),
        "7.2hpf": Source(
            "trixie",
            "trixie-backports",
            series="7.2",
            is_built=True,
            patches=("arm64-crash-hotplug-one-block.patch", "arm64-leave-out-offline-memory.patch"),
            options=("CONFIG_CRASH_HOTPLUG=y",),
            corrects=(Kind.MEMORY_GONE,),
            has_crash_hotplug=True,
        ),
    },
    triplet="aarch64-linux-gnu",
    dynamic_loader="usr/lib/ld-linux-aarch64.so.1",
    packages=("qemu-system-arm", "qemu-efi-aarch64"),
    unneeded=("usr/share/AAVMF/*", "usr/bin/qemu-system-arm"),
    user_emulator="qemu-aarch64",
    qemu="qemu-system-aarch64",
    firmware="qemu-efi-aarch64/QEMU_EFI.fd",
    machine=_virt,
    topology="",
    plugs_cpus=False,
    disk="virtio-blk-pci,drive=dump,romfile=",  # QEMU's packages for ARM come without option ROMs
    console="ttyAMA0",
    agent_port="ttyAMA1",
    crashkernel=256 * _MIB,
    capture_append="console=ttyAMA0 quiet nr_cpus=1 reset_devices panic=1 rdinit=/init acpi_no_memhotplug",
    crash_hotplug_since=None,
    distribution_loader="c",
    text_start=0xFFFF8000_00000000,  # VA_BITS_MIN is 48: modules and kernel are in the upper half
    program_counter="PC",
    register_count=34,
    busy_registers=tuple(range(8, 16)),  # struct user_pt_regs
    in_kernel=lambda pr_reg: pr_reg[33] & 0xF != 0,  # exception level of pstate; EL0t is 0
    unmaps_image_before=(6, 4),
    time_factor=2,
    reads_gone_memory=False,  # synchronous external abort
    large_blocks_before=(5, 12),  # f0b13ee23241 "arm64/sparsemem: reduce SECTION_SIZE_BITS"
    image_name="arm64 kernel image (Image)",
    release_of=_release_of_arm64_image,
    compiler="gcc-aarch64-linux-gnu",
    cross_compile="aarch64-linux-gnu-",
    built_image="arch/arm64/boot/Image",
)

ARCHITECTURES = {architecture.name: architecture for architecture in (X86_64, ARM64)}
"""The architectures by name; the first is the default."""


def architecture_of(name: str) -> GuestArchitecture:
    """Return an architecture by its name.

    :raise LabError: there is none of that name
    """
    if name not in ARCHITECTURES:
        raise LabError(f"no architecture is known as {name}; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
