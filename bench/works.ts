/** What is measured: each kind of work, who does it, and its targets. */
import { deepEqual } from 'node:assert/strict';
import { drive, fill, type Request } from './load.ts';
import type { Entry } from './measure.ts';
import { type Service, startNginx, startOurs } from './services.ts';
import { EXPRESS, FASTIFY, FEW, FLASK, KEY_PREFIX, OTHER, OURS, type Stage } from './stage.ts';

/** `rate` and `cpu`: ratios of the first to the second, at least and at most. `perSecond`: at least. */
export type Target = { rate?: number; cpu?: number; perSecond?: number };

/** `writes`: the small table is filled anew before each turn. */
export type Work = {
  title: string;
  target: Target;
  writes?: boolean;
  entries: (stage: Stage) => Promise<Entry[]>;
};

const get = (path: string): Request => ({ method: 'GET', path });
const ROW = `/passengers/${KEY_PREFIX}<key>`;
const body = JSON.stringify({
  survived: true,
  passengerClass: 2,
  name: 'Passenger <counter:1000000000>',
  sex: 'female',
  age: 33.5,
  siblingsOrSpousesAboard: 1,
  parentsOrChildrenAboard: 0,
  fare: 26.55,
});
export const READ = get(ROW);
const POST = { method: 'POST', path: '/passengers', body };
const PUT = { method: 'PUT', path: ROW, body };
export const LISTS = get('/passengers?limit=100&offset=<counter:788>'); // no two of 64 in flight are equal
const SAME_LIST = get('/passengers?limit=100');
const FILTER = get('/passengers?sex=eq.male&age=gt.20.<counter:1000>&order=fare.desc&limit=20');
const PLAIN_FILTER = get(
  '/passengers?sex=male&olderThan=20.<counter:1000>&order=fare.desc&limit=20',
);

const ALL = [FASTIFY, EXPRESS, FLASK];
const PAGE = 20;
const DEPTH = 10_000; // pages
const MIN_ROW_BYTES = 60;

/** The service and its peers in turns. */
export const DUELS: Record<string, Work> = {
  read: duel('GET by key, 64 connections', { rate: 2.5, cpu: 0.5 }, READ, { peers: ALL }),
  readAlone: duel('GET by key, 1 connection', { rate: 0.95, cpu: 1.1 }, READ, { connections: 1 }),
  list: duel('list of 100 rows, distinct offsets', { rate: 1.3, cpu: 0.9 }, LISTS),
  sameList: duel('list of 100 rows, the same one', { rate: 4 }, SAME_LIST),
  filter: duel('filter + order + limit 20, distinct values', { rate: 1.2, cpu: 0.9 }, FILTER, {
    plain: PLAIN_FILTER,
  }),
  create: duel('POST one row, 64 connections', { rate: 3, cpu: 0.5 }, POST, {
    peers: ALL,
    writes: true,
  }),
  replace: duel('PUT by key', { rate: 2.5, cpu: 0.5 }, PUT, { writes: true }),
};

export const WORKS: Record<string, Work> = {
  ...DUELS,
  nginx: { title: 'GET by key through nginx', target: { rate: 0.6 }, entries: throughNginx },
  size: { title: 'GET by key at 1 000 000 rows', target: { rate: 0.9 }, entries: bySize },
  deep: deepPage('by key', ''),
  deepFare: deepPage('by an indexed column', '&order=fare.desc'),
  csvOut: streamOut('CSV', 'text/csv'),
  ndjsonOut: streamOut('NDJSON', 'application/x-ndjson'),
  csvIn: { title: 'CSV in, rows', target: { perSecond: 100_000 }, entries: csvIn },
};

type Duel = { plain?: Request; connections?: number; peers?: string[]; writes?: boolean };

function duel(title: string, target: Target, request: Request, options: Duel = {}): Work {
  const { plain = request, connections = 64, peers = [FASTIFY], writes = false } = options;
  const entries = async (stage: Stage) => {
    const others = stage.peers.filter(({ name }) => name === OTHER || peers.includes(name));
    const requestTo = (on: Service) => (on.plain ? plain : request);
    const expected = await answersOf(stage.ours, request);
    for (const peer of others) {
      const message = `${peer.name} answers ${request.method} ${request.path} differently`;
      deepEqual(await answersOf(peer, requestTo(peer)), expected, message);
    }
    return [stage.ours, ...others].map((on) => load(stage, on, requestTo(on), { connections }));
  };
  return { title, target, writes, entries };
}

type LoadOptions = { name?: string; rows?: number; connections?: number };

function load({ scale }: Stage, on: Service, request: Request, options: LoadOptions = {}): Entry {
  const { name = on.name, rows = FEW, connections = 64 } = options;
  const { url } = on;
  const take = () => drive({ url, request, rows, connections, seconds: scale.seconds });
  return { name, on, take };
}

/** The answers to a request's first three variants; created keys are random and left out. */
async function answersOf({ url }: Service, { method, path, body }: Request) {
  const answers: unknown[] = [];
  for (const n of [1, 2, 3]) {
    const entity = body && { body: fill(body, n), headers: { 'content-type': 'application/json' } };
    const response = await fetch(url + fill(path, n), { method, ...entity });
    const { uuid, ...rest } = (await response.json()) as { uuid?: string };
    const row = uuid?.startsWith(KEY_PREFIX) ? { uuid, ...rest } : rest;
    answers.push({ status: response.status, row });
  }
  return answers;
}

async function throughNginx(stage: Stage): Promise<Entry[]> {
  const ours = await stage.guest(startOurs('direct', stage.few.url));
  const nginx = await stage.guest(startNginx(OURS, ours));
  return [load(stage, nginx, READ), load(stage, ours, READ)];
}

async function bySize(stage: Stage): Promise<Entry[]> {
  const large = await stage.guest(startOurs(OURS, (await stage.many()).url));
  const small = await stage.guest(startOurs(`at ${FEW} rows`, stage.few.url));
  return [load(stage, large, READ, { rows: stage.scale.rows }), load(stage, small, READ)];
}

/** The cursor is that of the page before. A filter that all rows pass makes each request another one. */
function deepPage(how: string, order: string): Work {
  const entries = async (stage: Stage) => {
    const ours = await stage.guest(startOurs(OURS, (await stage.many()).url));
    const offset = (Math.min(DEPTH, stage.scale.rows / PAGE / 2) - 1) * PAGE;
    const page = await fetch(`${ours.url}/passengers?limit=${PAGE}&offset=${offset}${order}`);
    const [, after] = /[?&]after=([^&>]+)/.exec(page.headers.get('link') ?? '') ?? [];
    if (!after) throw new Error(`no link to page ${DEPTH} ${how}: status ${page.status}`);
    const first = `/passengers?age=gt.-1.<counter:1000>&limit=${PAGE}${order}`;
    return [
      load(stage, ours, get(`${first}&after=${after}`)),
      load(stage, ours, get(first), { name: 'the first page' }),
    ];
  };
  return { title: `keyset page 10 000 deep ${how}`, target: { rate: 0.9 }, entries };
}

function streamOut(format: string, accept: string): Work {
  const entries = async (stage: Stage) => {
    const on = await stage.guest(startOurs(OURS, (await stage.many()).url));
    const { rows } = stage.scale;
    return [{ name: OURS, on, take: () => transfer(rows, () => download(on, accept, rows)) }];
  };
  return { title: `${format} out, rows`, target: { perSecond: 100_000 }, entries };
}

/** The rows of the large table into the emptied small one. */
async function csvIn(stage: Stage): Promise<Entry[]> {
  const { rows } = stage.scale;
  const CSV_LIMIT = String(2 ** 30);
  const on = await stage.guest(startOurs(OURS, stage.few.url, { env: { CSV_LIMIT } }));
  const source = await stage.guest(startOurs(OURS, (await stage.many()).url));
  const csv = await download(source, 'text/csv', rows);
  const upload = async () => {
    const headers = { 'content-type': 'text/csv', prefer: 'return=minimal' };
    const init = { method: 'POST', headers, body: csv };
    const response = await fetch(`${on.url}/passengers`, init);
    if (!response.ok) throw new Error(`CSV in: ${response.status} ${await response.text()}`);
  };
  const take = async () => {
    await stage.few.sql`truncate titanic`;
    return transfer(rows, upload);
  };
  return [{ name: OURS, on, take }];
}

async function transfer(requests: number, work: () => Promise<unknown>) {
  const from = performance.now();
  await work();
  return { requests, seconds: (performance.now() - from) / 1000 };
}

/** The whole table; rejects an answer that is too short to hold all rows. */
export async function download({ url }: Service, accept: string, rows: number): Promise<Blob> {
  const response = await fetch(`${url}/passengers`, { headers: { accept } });
  const blob = await response.blob();
  if (response.ok && blob.size > rows * MIN_ROW_BYTES) return blob;
  throw new Error(`${accept} of ${rows} rows: status ${response.status}, ${blob.size} bytes`);
}
