/** The HTTP server of one process: its limits, its start, its end by a signal. */
import cluster from 'node:cluster';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { realpathSync } from 'node:fs';
import { createServer, type Server, STATUS_CODES } from 'node:http';
import {
  type AddressInfo,
  createServer as createNetServer,
  type Server as NetServer,
  type Socket,
} from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { getRequestListener } from '@hono/node-server';
import type { Logger } from 'pino';
import { type Config, DEADLINE } from './config.ts';
import { openLog, say } from './log.ts';
import { Problem, problemAnswer, StartError, toProblem } from './problem.ts';

/** `prepared`: the tables are as declared. `stopping`: a signal came. Readiness follows both. */
export type Life = { prepared: boolean; stopping: boolean };

type Address = Pick<Config, 'PORT' | 'HOST'>;

/** What a process serves: the application, the check of its tables, the end of what it opened. */
export type Service = {
  fetch: Parameters<typeof getRequestListener>[0];
  life: Life;
  prepare: () => Promise<void>;
  close: () => Promise<void>;
};

/** A running service; `failed` rejects with StartError when it cannot work. */
export type Running = { url: string; failed: Promise<never>; stop: () => Promise<void> };

/** The methods of the service; each path has some of them. */
export const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'];
/** Bytes of a request's head, and of its target: room for 800 UUIDs in `in.(…)`. */
export const MAX_HEAD = 128 * 1024;
/** Times in ms. nginx answers earlier. */
export const LIMITS = {
  headersTimeout: 10_000,
  requestTimeout: 60_000,
  keepAliveTimeout: 75_000,
  connectionsCheckingInterval: 1000,
  maxHeaderSize: 2 * MAX_HEAD,
  requireHostHeader: false,
};
const DRAIN = 500; // ms from the signal in which clients of open connections ask once more
const QUIET = 100; // ms without a new connection
const STALLED = 30_000; // ms without a byte in either direction
const PAUSE = 5000; // ms between two reads of a body

/** Serves in this process until stop(). */
export async function serve(
  { PORT, HOST, SHUTDOWN_GRACE }: Address & Pick<Config, 'SHUTDOWN_GRACE'>,
  service: Service,
  log: Logger,
): Promise<Running> {
  let held: Promise<void> | undefined;
  const server = createHttpServer((...given) =>
    held ? held.then(() => service.fetch(...given)) : service.fetch(...given),
  );
  const sockets = new Set<Socket>();
  let accepted = 0; // when the last connection was
  server.on('connection', (socket: Socket) => {
    accepted = performance.now();
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });
  const prepared = prepare(service);
  await Promise.race([prepared, sleep(500)]); // so that it is ready when it listens
  await listen(server, { PORT, HOST });
  const url = urlOf(server.address() as AddressInfo);
  log.info({ url }, 'listening');
  const closeIdle = () => {
    server.closeIdleConnections(); // those that have sent nothing yet count as busy in Node
    for (const socket of sockets) if (socket.bytesRead === 0) socket.destroy();
  };
  /** Closing a port resets connections that are not accepted yet; answers wait until none arrives. */
  const closeQuietly = async () => {
    for (let ms = 0; ms < DRAIN && performance.now() < accepted + QUIET; ms += 10) await sleep(10);
    server.close();
    if (sockets.size > 0) await sleep(QUIET); // the primary of several workers closes it last
  };
  const stop = async () => {
    service.life.stopping = true; // from now on each answer closes its connection
    const open = [...sockets];
    await sleep(SHUTDOWN_GRACE * 1000);
    for (let ms = 0; ms < DRAIN && open.some(({ destroyed }) => !destroyed); ms += 10)
      await sleep(10);
    const closed = once(server, 'close');
    held = closeQuietly();
    await held;
    const idle = setInterval(closeIdle, 50);
    await Promise.race([closed, sleep(DEADLINE + 500)]);
    server.closeAllConnections();
    clearInterval(idle);
    await service.close();
  };
  return { url, failed: prepared.then(() => new Promise(() => {})), stop };
}

async function listen(server: NetServer, { PORT, HOST }: Address): Promise<void> {
  await once(server.listen(PORT, HOST), 'listening').catch(({ code }) => {
    const message = `Cannot listen on PORT ${PORT} of HOST ${HOST} (${code}); set another PORT`;
    throw new StartError(message);
  });
}

/** Throws StartError when the port is taken, before a PostgreSQL is made for nothing. */
export async function checkPort(address: Address): Promise<void> {
  const server = createNetServer();
  await listen(server, address);
  await once(server.close(), 'close');
}

/** Tries until the tables are as declared; rejects when they cannot be served. */
async function prepare({ life, prepare }: Service): Promise<void> {
  while (!life.prepared && !life.stopping) {
    try {
      await prepare();
      life.prepared = true;
    } catch (error) {
      if (error instanceof StartError || toProblem(error).status < 503) throw error;
      await sleep(100);
    }
  }
}

export function urlOf({ address, port }: { address: string; port: number }): string {
  return `http://${address.includes(':') ? `[${address}]` : address}:${port}`;
}

// --- Requests that never reach the application ------------------------------------

const TOO_SLOW: [number, string] = [408, 'The request did not arrive in time.'];
/** What Node answers without a body. */
const CLIENT_ERRORS: Record<string, [number, string]> = {
  HPE_INVALID_METHOD: [405, 'There is no such method.'],
  HPE_HEADER_OVERFLOW: [431, 'The head of the request is too large.'],
  ERR_HTTP_REQUEST_TIMEOUT: TOO_SLOW,
};

function createHttpServer(fetch: Service['fetch']): Server {
  const errorHandler = () => {
    const { body, ...init } = refusal(400, 'The Host or the target is not valid.');
    return new Response(body, init);
  };
  const listener = getRequestListener(fetch, { hostname: 'localhost', errorHandler });
  const server = createServer(LIMITS, (incoming, outgoing) => {
    const { headers, socket } = incoming;
    if (headers['content-length'] ?? headers['transfer-encoding']) {
      socket.setTimeout(PAUSE);
      incoming.once('timeout', () => refuse(socket, ...TOO_SLOW));
      incoming.once('end', () => socket.setTimeout(STALLED));
    }
    return listener(incoming, outgoing);
  });
  server.timeout = STALLED;
  server.on('connect', (_, socket: Socket) => refuse(socket, 405, 'There is no such method.'));
  server.on('checkExpectation', (_, response) => {
    const { status, headers, body } = refusal(417, 'The only expectation is 100-continue.');
    response.writeHead(status, headers).end(body);
  });
  server.on('clientError', ({ code = '' }: NodeJS.ErrnoException, socket: Socket) => {
    refuse(socket, ...(CLIENT_ERRORS[code] ?? [400, 'This is not valid HTTP.']));
  });
  return server;
}

function refusal(status: number, detail: string) {
  const headers = {
    'X-Request-Id': randomUUID(),
    'Server-Timing': 'total;dur=0',
    Connection: 'close',
    ...(status === 405 && { Allow: METHODS.join(', ') }),
  };
  return problemAnswer(new Problem(status, 'PGRST100', detail, undefined, { headers }));
}

function refuse(socket: Socket, status: number, detail: string): void {
  if (!socket.writable) return; // it is closed, or answered: Node reports each byte after the fault
  const { headers, body } = refusal(status, detail);
  const all = { ...headers, 'Content-Length': Buffer.byteLength(body) };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${lines.join('')}\r\n${body}`);
  socket.resume(); // unread bytes would make the close a reset, which discards the answer
  setTimeout(() => socket.destroy(), 500).unref();
}

// --- The process ------------------------------------------------------------------

/** Resolves at the first signal; the second ends the process, but npm makes two of one Ctrl-C. */
export function untilSignal(): Promise<void> {
  process.on('SIGUSR1', () => {}); // Node would open its debugger
  return new Promise((resolve) => {
    let first = Number.POSITIVE_INFINITY;
    const onSignal = (signal: string) => {
      if (cluster.isWorker) return; // the primary stops its workers
      const now = performance.now();
      if (now > first + (signal === 'SIGINT' ? 500 : 0)) process.exit(1);
      first = Math.min(first, now);
      resolve();
    };
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, onSignal);
    process.on('message', ({ ask }: { ask?: string }) => ask === 'stop' && resolve());
  });
}

/** Whether this process was started with the file of this URL. */
export function isMain(url: string): boolean {
  const [, started] = process.argv;
  return started !== undefined && realpathSync(started) === fileURLToPath(url);
}

/** Ends the process; exit code 2 for what an operator must fix, with one line of log. */
export function exitWith(error: unknown): never {
  const known = error instanceof StartError;
  const { message, stack } = error instanceof Error ? error : new Error(String(error));
  if (known && message.includes('\n')) say(`${message}\n`); // SQL to paste
  openLog('info').fatal(known ? {} : { message, stack }, known ? message : 'ended by an error');
  process.exit(known ? 2 : 1);
}
