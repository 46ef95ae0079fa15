/**
 * `npm run acceptance` on each way into a cluster: the image's nginx alone (nodeport), and below a
 * second nginx, which stands in for a controller (ingress) or a gateway that keeps a prefix (gateway).
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { text } from 'node:stream/consumers';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';
import { freePort } from '../lib/embedded.ts';
import { bearer, inherited, nodeArguments, openDatabase, startReady } from '../test/harness.ts';
import { installed, read, runNginx, startNginx } from './run.ts';

const skip = !process.env.CI && !installed && 'nginx is missing';
const SCRIPT = fileURLToPath(new URL('../cloudbuild/acceptance.ts', import.meta.url));
const JWT_SECRET = 'a secret of the acceptance tests long enough';
const { metadata } = parse(await read('kustomize/components/ingress/ingress.yaml'));
const bodySize = metadata.annotations['nginx.ingress.kubernetes.io/proxy-body-size'];
const database = await openDatabase();

/** A controller's nginx with the limit of bodies that the Ingress asks for. */
const controller = (port: number, to: number) => `
daemon off;
pid /tmp/nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path /tmp/body;
    client_max_body_size ${bodySize};
    large_client_header_buffers 4 132k;
    server {
        listen 127.0.0.1:${port};
        location / {
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_request_buffering off;
            proxy_buffer_size 160k;
            proxy_buffers 4 160k;
            proxy_busy_buffers_size 320k;
            proxy_pass http://127.0.0.1:${to};
        }
    }
}`;

const WAYS: [component: string, BASE_PATH: string, behind: boolean][] = [
  ['nodeport', '', false],
  ['ingress', '', true],
  ['gateway', '/titanic', true],
];
for (const [component, BASE_PATH, behind] of WAYS) {
  test(`acceptance passes through ${component}${BASE_PATH}`, { skip }, async (t) => {
    const environment = { DATABASE_URL: database.url, AUTH: 'write', JWT_SECRET, BASE_PATH };
    const service = await startReady(environment);
    t.after(() => service.stop());
    const image = await startNginx(Number(new URL(service.url).port));
    t.after(image.stop);
    let port = image.open;
    if (behind) {
      port = await freePort();
      const front = await runNginx(port, { 'nginx.conf': controller(port, image.open) });
      t.after(front.stop);
    }
    const { authorization } = await bearer(JWT_SECRET, 'acceptance');
    const env = { ...inherited(), TOKEN: authorization.replace('Bearer ', '') };
    const url = `http://127.0.0.1:${port}${BASE_PATH}`;
    const child = spawn(process.execPath, [...nodeArguments, SCRIPT, url], { env });
    const output = await text(child.stdout);
    const failed = output.match(/^not ok .*(\n {4}.*)*/gm)?.join('\n') ?? output;
    assert.match(output, /^acceptance: [1-9]\d+ passed, 0 failed$/m, failed);
  });
}
