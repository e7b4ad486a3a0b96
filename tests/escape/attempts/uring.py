"""io_uring, without any library: rings of one's own and rings from before the label. Not an attempt itself; attempts use it."""
import mmap
import struct

from suite import *

SETUP, ENTER, REGISTER = 425, 426, 427
NOP, WRITEV, FSYNC, SENDMSG, ACCEPT, CONNECT, FALLOCATE, OPENAT, CLOSE, WRITE, SEND = 0, 2, 3, 9, 13, 16, 17, 18, 19, 23, 26
SPLICE, RENAMEAT, UNLINKAT, MKDIRAT, SYMLINKAT, LINKAT, FSETXATTR, SETXATTR, SOCKET, FTRUNCATE = 30, 35, 36, 37, 38, 39, 41, 42, 45, 55
SQPOLL = 2


class Ring:
    """A ring; it may be made before the label and used after it."""

    def __init__(self, flags=0, files=()):
        params = bytearray(120)
        struct.pack_into("=II", params, 8, flags, 0)
        if flags & SQPOLL:
            struct.pack_into("=I", params, 16, 2000)
        buffer = (ctypes.c_char * 120).from_buffer(params)
        self.fd = system(SETUP, 8, buffer)
        entries, cq_entries = struct.unpack_from("=II", params, 0)
        sq, cq = struct.unpack_from("=8I", params, 40), struct.unpack_from("=8I", params, 80)
        self.flags, self.sq, self.cq = flags, sq, cq
        self.sq_ring = mmap.mmap(self.fd, sq[6] + entries * 4, flags=mmap.MAP_SHARED, offset=0)
        self.cq_ring = mmap.mmap(self.fd, cq[5] + cq_entries * 16, flags=mmap.MAP_SHARED, offset=0x8000000)
        self.entries = mmap.mmap(self.fd, entries * 64, flags=mmap.MAP_SHARED, offset=0x10000000)
        self.kept = []
        if files:
            system(REGISTER, self.fd, 2, struct.pack(f"={len(files)}i", *files), len(files))

    def at(self, data):
        """The address of bytes, which stay."""
        buffer = ctypes.create_string_buffer(data, len(data) + 1)
        self.kept.append(buffer)
        return ctypes.addressof(buffer)

    def submit(self, code, fd=-1, address=0, length=0, offset=0, flags=0, more=0, splice=0, entry_flags=0, seconds=3):
        """One operation; gives its result, or fails as it did."""
        get = lambda ring, at: struct.unpack_from("=I", ring, at)[0]
        tail = get(self.sq_ring, self.sq[1])
        mask = get(self.sq_ring, self.sq[2])
        entry = struct.pack("=BBHiQQIIQHHiQQ", code, entry_flags, 0, fd, offset, address, length, flags, 7, more, 0, splice, 0, 0)
        index = tail & mask
        self.entries[index * 64:index * 64 + 64] = entry
        struct.pack_into("=I", self.sq_ring, self.sq[6] + index * 4, index)
        struct.pack_into("=I", self.sq_ring, self.sq[1], tail + 1)
        if self.flags & SQPOLL:
            # Wakes its thread if it sleeps.
            system(ENTER, self.fd, 1, 0, 2, None, 0)
        else:
            system(ENTER, self.fd, 1, 0, 0, None, 0)
        end = time.monotonic() + seconds * SLOW
        while time.monotonic() < end:
            head = get(self.cq_ring, self.cq[0])
            if head != get(self.cq_ring, self.cq[1]):
                at = self.cq[5] + (head & get(self.cq_ring, self.cq[2])) * 16
                result = struct.unpack_from("=i", self.cq_ring, at + 8)[0]
                struct.pack_into("=I", self.cq_ring, self.cq[0], head + 1)
                if result < 0:
                    raise OSError(-result, os.strerror(-result))
                return result
            time.sleep(0.002)
        raise OSError(errno.ETIME, "no completion")

    def open(self, path, flags, mode=0o644):
        return self.submit(OPENAT, -100, self.at(path.encode()), mode, flags=flags)

    def write(self, fd, data, **more):
        return self.submit(WRITE, fd, self.at(data), len(data), **more)

    def connect(self, fd, address):
        return self.submit(CONNECT, fd, self.at(address), 0, offset=len(address))

    def send(self, fd, data, **more):
        return self.submit(SEND, fd, self.at(data), len(data), **more)

    def two_paths(self, code, old, new, flags=0):
        return self.submit(code, -100, self.at(old.encode()), -100 & 0xffffffff, offset=self.at(new.encode()), flags=flags)
