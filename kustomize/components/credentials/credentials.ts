/**
 * Creates the Secret `passengers` with random values unless it exists: the initContainer of the
 * Deployment, whose role may only create Secrets. Needs only Node.
 *
 *     node credentials.ts [directory]   of token, ca.crt and namespace, as the kubelet mounts them
 *
 * Exit code 0: the Secret exists, created here or before (409), so replicas may start together.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { request } from 'node:https';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const MOUNTED = '/var/run/secrets/kubernetes.io/serviceaccount';
const NAME = 'passengers';

/** In ms: one request, and all of them with the pauses between. Then the kubelet starts it again. */
const ANSWER_TIMEOUT = 5000;
const TOTAL_TIMEOUT = 20_000;

/** Statuses that a retry does not change, and what an operator can check. */
const REFUSALS: Record<number, string> = {
  401: 'the token is not accepted; is it projected from this cluster, and the clock right?',
  403: 'the service account may not create secrets here; apply the Role and RoleBinding credentials',
  404: 'there is no such namespace; apply the whole yaml',
  422: 'the Secret is not valid for this cluster; look for an admission policy that refuses it',
};

type Cluster = { url: URL; token: string; ca: string };

/** Address and credentials of the API server. Reads the token each time, since it is rotated. */
function readCluster(directory: string): Cluster {
  const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = process.env;
  if (!host || !port)
    throw new Error('not in a cluster: KUBERNETES_SERVICE_HOST and _PORT are unset');
  const mounted = (name: string) => readFileSync(join(directory, name), 'utf8').trim();
  const authority = `${host.includes(':') ? `[${host}]` : host}:${port}`;
  const path = `/api/v1/namespaces/${mounted('namespace')}/secrets`;
  return {
    url: new URL(path, `https://${authority}`),
    token: mounted('token'),
    ca: mounted('ca.crt'),
  };
}

function makeSecret() {
  const random = () => randomBytes(32).toString('base64url');
  return {
    apiVersion: 'v1',
    kind: 'Secret',
    metadata: { name: NAME, labels: { 'app.kubernetes.io/name': NAME } },
    stringData: { JWT_SECRET: random(), PGPASSWORD: random() },
  };
}

/** The status of the answer; its body is not read, since it may repeat the secrets that were sent. */
function post({ url, token, ca }: Cluster, body: string, ms: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const headers = { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' };
    const options = { method: 'POST', ca, headers, agent: false, signal: AbortSignal.timeout(ms) };
    const call = request(url, options, (answer) => {
      resolve(answer.statusCode ?? 0);
      answer.destroy();
    });
    call.on('error', reject);
    call.end(body);
  });
}

/** Node's error codes for a certificate that ca.crt did not sign. */
const UNTRUSTED = /CERT|SIGNATURE|ISSUER/;

/** Undefined: done. A text: the reason for a retry. Throws what a retry does not change. */
async function attempt(directory: string, body: string, ms: number): Promise<string | undefined> {
  const cluster = readCluster(directory);
  try {
    const status = await post(cluster, body, ms);
    if (status === 201) return log('info', `created the Secret ${NAME}`);
    if (status === 409) return log('info', `the Secret ${NAME} exists already`);
    if (status === 429 || status >= 500) return `the API server answered ${status}`;
    throw new Refusal(`${status}: ${REFUSALS[status] ?? 'the API server refuses the Secret'}`);
  } catch (error) {
    if (!(error instanceof Error) || error instanceof Refusal) throw error;
    const code = 'code' in error ? String(error.code) : error.name; // ABORT_ERR: timed out
    if (!UNTRUSTED.test(code))
      return `the API server at ${cluster.url.host} does not answer (${code})`;
    throw new Refusal(
      `${code}: ca.crt did not sign the certificate of ${cluster.url.host}; nothing was sent`,
    );
  }
}

class Refusal extends Error {}

/** Retries until the Secret exists; rejects when it is refused, or after TOTAL_TIMEOUT. */
async function createSecret(directory: string): Promise<void> {
  const body = JSON.stringify(makeSecret());
  const end = performance.now() + TOTAL_TIMEOUT;
  for (let pause = 250; ; pause = Math.min(2 * pause, 5000)) {
    const why = await attempt(directory, body, ANSWER_TIMEOUT);
    if (!why) return;
    if (performance.now() + pause > end) throw new Error(why);
    log('warn', `${why}; trying again`);
    await sleep(pause);
  }
}

function log(level: string, msg: string): undefined {
  process.stdout.write(`${JSON.stringify({ level, time: Date.now(), msg })}\n`);
}

createSecret(process.argv[2] ?? MOUNTED).catch((error: Error) => {
  log('fatal', error.message);
  process.exitCode = 1;
});
