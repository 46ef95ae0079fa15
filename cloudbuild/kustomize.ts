/**
 * A kustomize that can edit, which kubectl's cannot: the machine's own, else Debian's, unpacked from
 * its package of trixie into the cache. That runs on Debian 12 as well.
 */
import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { cache, mirror } from './base-image.ts';

/** The path of a kustomize; the first call may take half a minute. */
export function findKustomize(): string {
  const own = which('kustomize');
  if (own) return own;
  const unpacked = join(cache, 'kustomize/usr/bin/kustomize');
  if (!existsSync(unpacked)) unpack(dirname(dirname(dirname(unpacked))));
  return unpacked;
}

function which(command: string): string | undefined {
  try {
    return execFileSync('which', [command], { encoding: 'utf8' }).trim();
  } catch {
    return undefined;
  }
}

/** apt with a configuration of its own, so that the machine's stays on its suite. */
function unpack(to: string): void {
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'apt-'));
  const apt = (...args: string[]) => {
    const env = { ...process.env, APT_CONFIG: join(work, 'apt.conf') };
    execFileSync('apt-get', ['-qq', ...args], {
      cwd: work,
      env,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
  };
  try {
    for (const name of ['lists/partial', 'archives/partial'])
      mkdirSync(join(work, name), { recursive: true });
    const keys = '/usr/share/keyrings/debian-archive-keyring.gpg';
    writeFileSync(join(work, 'sources.list'), `deb [signed-by=${keys}] ${mirror()} trixie main\n`);
    writeFileSync(join(work, 'apt.conf'), configuration(work));
    apt('update');
    apt('download', 'kustomize');
    const [file = ''] = readdirSync(work).filter((name) => name.endsWith('.deb'));
    execFileSync('dpkg', ['-x', join(work, file), join(work, 'root')]);
    rmSync(to, { recursive: true, force: true });
    renameSync(join(work, 'root'), to);
  } finally {
    rmSync(work, { recursive: true });
  }
}

function configuration(work: string): string {
  return `Dir::Etc::sourcelist "${work}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "${work}/lists";
Dir::Cache "${work}";
APT::Sandbox::User "root";
`;
}
