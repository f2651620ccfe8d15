"""The text of a model kernel's vmcoreinfo: the keys that tools ask a real kernel's for, with the model's addresses."""

from __future__ import annotations

from crash_hotplug.model.profile import MachineProfile


def vmcoreinfo_text(profile: MachineProfile, crash_time: int) -> str:
    """Return the note's lines.

    :param crash_time: seconds since 1970
    """
    text = profile.kernel_text
    lines = [f"OSRELEASE={profile.kernel_release}", "PAGESIZE=4096"]
    lines.append(f"SYMBOL(_stext)={text.virt:x}")
    lines.append(f"NUMBER(phys_base)={text.phys - (text.virt - 0xFFFFFFFF80000000)}")
    lines.append(f"KERNELOFFSET={text.virt - 0xFFFFFFFF81000000:x}")
    lines.append("NUMBER(KERNEL_IMAGE_SIZE)=1073741824")
    lines.append("NUMBER(pgtable_l5_enabled)=0")
    lines.append("NUMBER(sme_mask)=0")
    lines.append(f"CRASHTIME={crash_time}")
    return "\n".join(lines) + "\n"
