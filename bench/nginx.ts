/** The service behind the project's own nginx configuration, on free ports. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { freePort } from '../test/embedded.ts';
import { childrenOf, until } from '../test/harness.ts';
import type { Contestant } from './contestants.ts';
import { isInstalled } from './load.ts';

const HOME = fileURLToPath(new URL('../nginx', import.meta.url));

/** Undefined, with the reason printed, where there is no nginx or no configuration. */
export async function startNginx(ours: Contestant): Promise<Contestant | undefined> {
  if (!existsSync(join(HOME, 'nginx.conf')) || !(await isInstalled('nginx', '-v'))) {
    console.log('nginx is left out: it wants nginx/nginx.conf and apt-get install nginx-light');
    return undefined;
  }
  const directory = await mkdtemp(join(tmpdir(), 'bench-'));
  const [port, inner] = [await freePort(), await freePort()];
  const ports = { '8080': `${port}`, '8081': `${inner}`, '8000': new URL(ours.url).port };
  for (const file of ['nginx.conf', 'passengers.conf']) {
    const text = await readFile(join(HOME, file), 'utf8');
    await writeFile(join(directory, file), adapted(text, directory, ports));
  }
  await chmod(directory, 0o755); // for workers, which are nobody's when this is root's
  const args = ['-p', directory, '-c', join(directory, 'nginx.conf')];
  const child = spawn('nginx', args, { stdio: ['ignore', 'ignore', 'inherit'] });
  const url = `http://127.0.0.1:${port}`;
  await until(async () => {
    if (child.exitCode !== null) throw new Error('nginx ended');
    return fetch(`${url}/hello`).catch(() => undefined);
  });
  const pid = child.pid ?? 0;
  const pids = async () => [pid, ...(await childrenOf(pid)), ...(await ours.pids())];
  return { name: 'passengers', url, pids, stop: () => end(child, directory) };
}

/** On other ports and in another directory; nothing else is changed. */
function adapted(text: string, directory: string, ports: Record<string, string>): string {
  const moved = text.replace(/\b(8080|8081|8000)\b/g, (port) => ports[port] ?? port);
  return moved.replaceAll('/tmp/', `${directory}/`);
}

async function end(child: ChildProcess, directory: string): Promise<void> {
  if (child.exitCode === null) {
    child.kill('SIGTERM');
    await once(child, 'exit');
  }
  await rm(directory, { recursive: true });
}
