"""A SLURM of two nodes on this machine, from Debian's packages."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun')

_CONF = """
ClusterName=small
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort=16817
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdTimeout=15
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=16818 CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=16819 CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def is_there() -> bool:
  """Whether its programs are installed, and this user may start them."""
  path = f'{os.environ.get("PATH", "")}:/usr/sbin:/sbin'
  found = [shutil.which(name, path=path) for name in PROGRAMS]
  return all(found) and os.getuid() == 0


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[dict[str, str]]:
  """Starts it, and stops it at the end.

  Args:
    folder: an empty folder for its files, with a short path.

  Yields:
    The environment variables that its programs need.
  """
  folder.chmod(0o755)
  munge = folder / 'munge'
  munge.mkdir()
  (folder / 'state').mkdir()
  key = munge / 'key'
  key.write_bytes(os.urandom(1024))
  key.chmod(0o400)
  conf = folder / 'slurm.conf'
  conf.write_text(
    _CONF.format(
      folder=folder, host=socket.gethostname().partition('.')[0], user='root'
    )
  )
  variables = {'SLURM_CONF': str(conf)}
  environment = os.environ | variables
  environment['PATH'] += ':/usr/sbin:/sbin'

  def call(*command: str) -> str:
    return subprocess.run(
      command,
      env=environment,
      check=True,
      timeout=60,
      stdout=subprocess.PIPE,
      text=True,
    ).stdout

  try:
    call(
      *('munged', '--force', f'--key-file={key}', f'--socket={munge}/socket'),
      *(f'--pid-file={folder}/munged.pid', f'--log-file={munge}/log'),
      f'--seed-file={munge}/seed',
    )
    call('slurmctld', '-f', str(conf))
    for node in ('n1', 'n2'):
      call('slurmd', '-f', str(conf), '-N', node)
    deadline = time.monotonic() + 60
    while call('sinfo', '--noheader', '--format=%D %t').strip() != '2 idle':
      assert time.monotonic() < deadline, call('sinfo')
      time.sleep(0.5)
    yield variables
  finally:
    for path in sorted(folder.glob('*.pid'), reverse=True):  # munged last
      with contextlib.suppress(OSError, ValueError):
        os.kill(int(path.read_text()), signal.SIGTERM)
