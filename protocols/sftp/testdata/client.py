"""What programs do with paramiko: PORT PASSWORD SOURCE TARGET."""
import stat
import sys

import paramiko

port, password, source, target = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
ssh = paramiko.SSHClient()
ssh.set_missing_host_key_policy(paramiko.AutoAddPolicy())
ssh.connect("127.0.0.1", port, "alice", password, allow_agent=False, look_for_keys=False)
sftp = ssh.open_sftp()
assert sftp.normalize(".") == "/"
sftp.chdir("/docs")
sftp.put(source, "f", confirm=True)
sftp.get("f", target)
assert open(source, "rb").read() == open(target, "rb").read()
with sftp.open("f", "r+") as f:
    f.seek(10)
    f.write(b"changed")
    f.seek(0)
    assert f.read(20)[10:17] == b"changed"
with sftp.open("log", "a") as f:
    f.write(b"one\n")
with sftp.open("log", "a") as f:
    f.write(b"two\n")
with sftp.open("log") as f:
    f.prefetch()
    assert f.read() == b"one\ntwo\n"
try:
    sftp.open("log", "x")
    raise AssertionError("an exclusive open of what is there")
except IOError:
    pass
with sftp.open("log", "w") as f:
    f.set_pipelined(True)
    for i in range(100):
        f.write(b"%099d\n" % i)
assert sftp.stat("log").st_size == 10000
sftp.truncate("log", 10)
sftp.utime("log", (1e9, 1e9))
sftp.chmod("log", 0o600)
i = sftp.stat("log")
assert i.st_size == 10 and i.st_mtime == 1e9 and stat.S_IMODE(i.st_mode) == 0o600, i
sftp.mkdir("d")
sftp.rename("log", "d/log")
sftp.symlink("log", "d/link")
assert sftp.readlink("d/link") == "log"
assert stat.S_ISLNK(sftp.lstat("d/link").st_mode) and stat.S_ISREG(sftp.stat("d/link").st_mode)
assert sorted(sftp.listdir("d")) == ["link", "log"]
try:
    sftp.rename("f", "d/log")
    raise AssertionError("a rename onto what is there")
except IOError:
    pass
sftp.posix_rename("f", "d/log")
try:
    sftp.rmdir("d")
    raise AssertionError("a full folder was removed")
except IOError:
    pass
for name in sftp.listdir("d"):
    sftp.remove("d/" + name)
sftp.rmdir("d")
assert sftp.listdir(".") == []
sftp.close()
ssh.close()
print("all well")
