/** What the tests here share: this machine's nginx with the files of the image, or with others. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { freePort } from '../lib/embedded.ts';
import { until } from '../test/harness.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
export const read = (path: string) => readFile(join(root, path), 'utf8');
export const installed = spawnSync('nginx', ['-v']).status === 0;

/** nginx with the files of the image, on other ports and in another directory. */
export async function startNginx(node: number, trusted = '') {
  const [open, probes] = [await freePort(), await freePort()];
  const files: Record<string, string> = { 'trusted.d/test.conf': trusted };
  for (const name of ['nginx.conf', 'passengers.conf'])
    files[name] = (await read(`nginx/${name}`))
      .replace('127.0.0.1:8000', `127.0.0.1:${node}`)
      .replace('listen 8080', `listen 127.0.0.1:${open}`)
      .replace('listen 8081', `listen 127.0.0.1:${probes}`);
  return { open, probes, ...(await runNginx(open, files)) };
}

/** nginx with these files of /etc/nginx; ready when `port` answers. */
export async function runNginx(port: number, files: Record<string, string>) {
  const directory = await mkdtemp(join(tmpdir(), 'passengers-nginx-'));
  for (const name of ['tmp', 'trusted.d']) await mkdir(join(directory, name));
  for (const [name, text] of Object.entries(files)) {
    const moved = text.replaceAll('/tmp/', `${directory}/tmp/`);
    await writeFile(join(directory, name), moved.replaceAll('/etc/nginx/', `${directory}/`));
  }
  // nginx opens /dev/stdout, which has to be a pipe; Node's are sockets
  const user = process.getuid?.() === 0 ? "-g 'user root;'" : '';
  const script = `nginx -e stderr -c "$0/nginx.conf" ${user} | cat`;
  const child = spawn('bash', ['-c', script, directory], { stdio: ['ignore', 'pipe', 'inherit'] });
  let log = '';
  child.stdout.setEncoding('latin1').on('data', (data) => {
    log += data;
  });
  const pid = () => readFile(join(directory, 'tmp/nginx.pid'), 'utf8').catch(() => '');
  const first = () => fetch(`http://127.0.0.1:${port}`).catch(() => undefined);
  await until(async () => (await pid()) && first(), 5000);
  const stop = async () => {
    process.kill(Number(await pid()), 'SIGTERM');
    await once(child, 'close');
    await rm(directory, { recursive: true });
  };
  return { log: () => log, stop };
}
