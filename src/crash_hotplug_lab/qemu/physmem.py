"""Change one byte of a guest's physical memory from outside, through QEMU's gdb stub.

The guest's kernel protects the crash image from everybody in the guest (STRICT_DEVMEM, write-protected pages), which is
right, and leaves no way to show in the guest that the digest notices a changed byte.
"""

from __future__ import annotations

import asyncio

from crash_hotplug_lab.qemu.errors import GuestError


async def flip_bit(socket: str, phys: int) -> None:
    """Flip the lowest bit of the byte at a physical address.

    :raise GuestError: when the stub does not do it
    """
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        if await _ask(reader, writer, "Qqemu.PhyMemMode:1") != "OK":
            raise GuestError("QEMU's gdb stub cannot address physical memory")
        old = int(await _ask(reader, writer, f"m{phys:x},1"), 16)
        if await _ask(reader, writer, f"M{phys:x},1:{old ^ 1:02x}") != "OK":
            raise GuestError(f"QEMU's gdb stub could not write at phys {phys:#x}")
        await _ask(reader, writer, "Qqemu.PhyMemMode:0")
        await _send(writer, "D")  # detach: the guest, which the connection stopped, goes on
        await reader.readuntil(b"#")
    except (ValueError, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
        raise GuestError(f"QEMU's gdb stub did not answer as expected ({error})") from None
    finally:
        writer.close()


async def _send(writer: asyncio.StreamWriter, packet: str) -> None:
    writer.write(b"+$" + packet.encode() + b"#" + b"%02x" % (sum(packet.encode()) & 0xFF))
    await writer.drain()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, packet: str) -> str:
    await _send(writer, packet)
    await asyncio.wait_for(reader.readuntil(b"$"), 10)
    answer = await asyncio.wait_for(reader.readuntil(b"#"), 10)
    await reader.readexactly(2)
    return answer[:-1].decode()
