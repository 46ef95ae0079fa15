/** The kinds of work in the order in which they are measured, each with those who do it. */
import { SignJWT } from 'jose';
import { expectEqualAnswers } from './answers.ts';
import { type Contestant, startOurs } from './contestants.ts';
import { FEW } from './database.ts';
import { drive, type Load } from './load.ts';
import {
  type Entry,
  entryOf,
  type Figure,
  type Figures,
  measure,
  type Plan,
  summary,
} from './measure.ts';
import { pgbenchEntry } from './pgbench.ts';
import type { Scale, Stage } from './stage.ts';
import * as rows from './targets.ts';
import * as works from './works.ts';

type Taken = Record<string, Figure>;

/** `take` is given the figures of the kinds before; undefined where it cannot be measured here. */
type Round = { work: string; take: (before: Figures) => Promise<Taken | undefined> };

export function tournament(stage: Stage): Round[] {
  const { EXPRESS, FASTIFY, FLASK } = rows;
  const duel = (work: string, of: works.Work, names = [FASTIFY]): Round => ({
    work,
    take: () => compete(stage, of, names),
  });
  return [
    { work: rows.READ, take: () => readAll(stage) },
    duel(rows.READ_ALONE, works.readAlone),
    duel(rows.LISTS, works.lists),
    duel(rows.SAME_LIST, works.sameList),
    duel(rows.FILTER, works.filter),
    { work: rows.HALF, take: (before) => halfLoad(stage, before[rows.READ] ?? {}) },
    { work: rows.TOKENS, take: () => withTokens(stage) },
    { work: rows.NGINX, take: async () => throughNginx(stage) },
    { work: rows.SIZE, take: () => bySize(stage) },
    { work: rows.DEEP, take: () => byDepth(stage) },
    { work: rows.LONG, take: () => longLoad(stage) },
    duel(rows.CREATE, works.create, [FASTIFY, EXPRESS, FLASK]),
    duel(rows.REPLACE, works.replace),
  ];
}

/** Ours against the peers of these names, after a look that they answer alike. */
async function compete(stage: Stage, work: works.Work, names: string[], more: Entry[] = []) {
  const { ours, reset, scale } = stage;
  const peers = stage.peers.filter(({ name }) => names.includes(name));
  const before = work.writes ? reset : undefined;
  await expectEqualAnswers(work, ours, peers, before);
  const entries = [ours, ...peers].map((one) => entryFor(stage, one, work));
  return measure([...entries, ...more], scale.plan, before);
}

function entryFor(
  stage: Stage,
  contestant: Contestant,
  work: works.Work,
  more: Partial<Load> = {},
) {
  const { request, plain = request, connections } = work;
  const isPeer = stage.peers.includes(contestant);
  const load = { request: isPeer ? plain : request, connections, rows: FEW, ...more };
  return entryOf(contestant, load, stage.server);
}

/** The same entry under the name that the targets have for it. */
function named(name: string, { take }: Entry): Entry {
  return { name, take };
}

/** With the ceilings: of HTTP without a database, of the database without HTTP. */
async function readAll(stage: Stage): Promise<Taken> {
  const { ours, bare, few } = stage;
  const pgbench = await pgbenchEntry(few.url, FEW);
  const ceilings = [
    named(rows.HELLO, entryFor(stage, ours, works.hello)),
    entryFor(stage, bare, works.hello),
    ...(pgbench ? [pgbench] : []),
  ];
  return compete(stage, works.read, [rows.FASTIFY, rows.EXPRESS, rows.FLASK], ceilings);
}

/** Each at half of what it reached itself; ours also at half of what Fastify reached. */
async function halfLoad(stage: Stage, reached: Taken): Promise<Taken> {
  const { ours, peers, scale } = stage;
  const fastify = peers.filter(({ name }) => name === rows.FASTIFY);
  const rateOf = (name: string) => (reached[name]?.perSecond ?? 0) / 2;
  const at = (one: Contestant, name: string) =>
    entryFor(stage, one, works.read, { rate: rateOf(name) });
  const entries = [ours, ...fastify].map((one) => at(one, one.name));
  const slower = named(`${rows.OURS} at that rate of ${rows.FASTIFY}`, at(ours, rows.FASTIFY));
  return measure([...entries, slower], warmed(scale));
}

/** Processes of the same age, for one round: what V8 has compiled for one it has for the others. */
async function ofSameAge(
  starting: Promise<Contestant>[],
  round: (...all: Contestant[]) => Promise<Taken>,
): Promise<Taken> {
  const all = await Promise.all(starting);
  try {
    return await round(...all);
  } finally {
    for (const one of all) await one.stop();
  }
}

/** The stage has warmed all of them with this kind of work. */
function warmed({ plan }: Scale): Plan {
  return { ...plan, warmUp: 0 };
}

/** With AUTH=all and a token, and without either. */
async function withTokens(stage: Stage): Promise<Taken> {
  const { few, scale } = stage;
  const secret = 'a secret of the bench alone which has enough bytes';
  const signing = new SignJWT().setProtectedHeader({ alg: 'HS256' }).setSubject('bench');
  const token = await signing.setExpirationTime('1h').sign(Buffer.from(secret));
  const request = { ...works.read.request, token };
  const keyed = { AUTH: 'all', JWT_SECRET: secret };
  const starting = [startOurs(few.url, rows.OURS, keyed), startOurs(few.url, 'AUTH=none')];
  return ofSameAge(starting, (closed, open) => {
    return measure(
      [entryFor(stage, closed, { ...works.read, request }), entryFor(stage, open, works.read)],
      scale.plan,
    );
  });
}

function throughNginx(stage: Stage): Promise<Taken> | undefined {
  const { ours, nginx, scale } = stage;
  if (!nginx) return undefined;
  const direct = named('direct', entryFor(stage, ours, works.read));
  return measure([entryFor(stage, nginx, works.read), direct], warmed(scale));
}

function bySize(stage: Stage): Promise<Taken> {
  const { few, many, scale } = stage;
  const starting = [startOurs(many.url), startOurs(few.url, `at ${FEW} rows`)];
  return ofSameAge(starting, (large, small) => {
    const entries = [
      entryFor(stage, large, works.read, { rows: scale.rows }),
      entryFor(stage, small, works.read),
    ];
    return measure(entries, scale.plan);
  });
}

/** The cursor is that of the page before, as a client would have it. */
async function byDepth(stage: Stage): Promise<Taken> {
  const { oursOnMany, scale } = stage;
  const { url } = oursOnMany;
  const before = (works.DEPTH - 1) * works.PAGE;
  const page = await fetch(`${url}/passengers?limit=${works.PAGE}&offset=${before}`);
  const after = /[?&]after=([^&>]+)/.exec(page.headers.get('link') ?? '')?.[1];
  if (!after) throw new Error(`page ${works.DEPTH} of ${scale.rows} rows has no next one`);
  const entries = [
    entryFor(stage, oursOnMany, works.page(`&after=${after}`)),
    named('the first page', entryFor(stage, oursOnMany, works.page(''))),
  ];
  return measure(entries, scale.plan);
}

/** One load; what it reached in its parts by the service's own counter. */
async function longLoad(stage: Stage): Promise<Taken> {
  const { ours, scale } = stage;
  const { seconds, part } = scale.long;
  const load = { ...works.read, url: ours.url, rows: FEW, seconds: seconds + 1 };
  const ended = drive(load);
  await pause(500); // wrk makes its connections
  const rateOf = async () => {
    const [from, count] = [performance.now(), await countOf(ours)];
    await pause(part * 1000);
    return ((await countOf(ours)) - count) / ((performance.now() - from) / 1000);
  };
  const first = await rateOf();
  await pause((seconds - 2 * part) * 1000);
  const last = await rateOf();
  const sample = await ended;
  return {
    'the last 5 s': summary([{ ...sample, perSecond: last }]),
    'the first 5 s': summary([{ ...sample, perSecond: first }]),
  };
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** How many requests the service has answered. */
async function countOf({ url }: Contestant): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const counts = text.matchAll(/^http_request_duration_seconds_count\{.*\} (\d+)$/gm);
  return [...counts].reduce((sum, [, count]) => sum + Number(count), 0);
}
