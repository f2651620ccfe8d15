# SPDX-License-Identifier: MIT
"""Steps that run a program in the guest: this project's commands, whose output is checked, and shell lines."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Callable

from crash_hotplug.linux import kallsyms
from crash_hotplug.linux.iomem import read_iomem
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug_lab.qemu.agent import Agent
from crash_hotplug_lab.qemu.errors import GuestError, LabError
from crash_hotplug_lab.qemu.machine import QemuMachine
from crash_hotplug_lab.qemu.results import Result
from crash_hotplug_lab.scenario.records import Action

Say = Callable[[str, str], None]


async def take_command(
    agent: Agent, machine: QemuMachine, action: Action, snapshot: Path | None, append: str, result: Result, say: Say
) -> None:
    """Run one of this project's commands, and check its exit code, its output and its effect on the image.

    :param snapshot: the last snapshot, which has the addresses of the image
    :param append: the capture kernel's command line, put in for ``{append}``
    """
    if await _is_left_out(agent, action):
        say(str(action), "left out: this kernel has no such file")
        return
    arguments = [append if word == "{append}" else word for word in shlex.split(action.arguments["run"])]
    watched = action.arguments.get("image")
    before = await image_state(machine, snapshot) if watched else ""
    uid = action.arguments.get("uid", 0)
    done = await agent.run("python3", "-m", "crash_hotplug", *arguments, uid=uid)
    said = (done["out"].strip() + "\n" + done["err"].strip()).strip()
    shown = said if len(said) < 400 else said[:400] + "..."
    name = f"crash-hotplug {action.arguments['run']}" + (f" as user {uid}" if uid else "")
    say(name, f"exit code {done['rc']}: {shown}")
    code, words = action.arguments.get("code", 0), action.arguments.get("says", "")
    as_said = done["rc"] == code and words in said
    result.check(name, as_said, f"exit code {done['rc']}: {shown}" + ("" if as_said else f"; expected {code}: {words}"))
    if watched:
        same = before == await image_state(machine, snapshot)
        how = "reserved region and kexec_crash_image, read from outside the guest"
        result.check(f"image {watched} by {name}", same is (watched == "untouched"), how)


async def take_shell(agent: Agent, action: Action, append: str, say: Say) -> None:
    """Run a shell line in the guest, the capture kernel's command line put in for ``{append}``.

    :raise GuestError: it failed
    """
    if await _is_left_out(agent, action):
        say(str(action), "left out: this kernel has no such file")
        return
    line = action.arguments["run"]
    done = await agent.run("sh", "-c", line.replace("{append}", append))
    if done["rc"]:
        raise GuestError(f"in the guest, {line} failed: {(done['err'] or done['out']).strip()[-300:]}")
    say(str(action), done["out"].strip())


async def image_state(machine: QemuMachine, snapshot: Path | None) -> str:
    """Return a digest over the reserved region and the pointer to the loaded image, as QEMU has them in memory.

    :raise LabError: the snapshot does not say where they are
    """
    if snapshot is None:
        raise LabError("there is no snapshot with the addresses of the crash image")
    sysroot = Sysroot(str(snapshot))
    iomem = read_iomem(sysroot)
    symbols = kallsyms.read_symbols(sysroot, ("_text", "kexec_crash_image"))
    if iomem.kernel_code_phys is None or len(symbols) != 2:
        raise LabError("the snapshot does not say where kexec_crash_image is")
    pointer_phys = iomem.kernel_code_phys + symbols["kexec_crash_image"] - symbols["_text"]
    digest = hashlib.sha256()
    part = machine.out / "memory.part"
    for start, size in [(pointer_phys, 8), *((r.start, r.size) for r in iomem.crashkernel)]:
        await machine.qmp("pmemsave", val=start, size=size, filename=str(part.resolve()))
        with part.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        part.unlink()
    return digest.hexdigest()


async def _is_left_out(agent: Agent, action: Action) -> bool:
    path = action.arguments.get("if-exists")
    if path is None:
        return False
    found: int = (await agent.run("test", "-e", path))["rc"]
    return found != 0
