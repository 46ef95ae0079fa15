/** Everything that a run needs, started in order and ended in the reverse one. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { childrenOf, startDatabase, type TestDatabase } from '../test/harness.ts';
import { type Contestant, POOL_SIZE, startFlask, startNodePeer, startOurs } from './contestants.ts';
import { FEW, fillTable } from './database.ts';
import { drive } from './load.ts';
import type { Plan } from './measure.ts';
import { startNginx } from './nginx.ts';
import { BARE, EXPRESS, FASTIFY } from './targets.ts';
import { read } from './works.ts';

/** How much is measured. `long`: seconds of the long load, and of its first and last part. */
export type Scale = {
  plan: Plan;
  long: { seconds: number; part: number };
  rows: number;
  starts: number;
};

/** `few` and `many`: databases of 887 rows and of `scale.rows`, each with a service on it. */
export type Stage = {
  scale: Scale;
  few: TestDatabase;
  many: TestDatabase;
  ours: Contestant;
  oursOnMany: Contestant;
  peers: Contestant[];
  bare: Contestant;
  nginx: Contestant | undefined;
  /** The processes of PostgreSQL. */
  server: () => Promise<number[]>;
  /** The table of 887 rows as it was at first. */
  reset: () => Promise<void>;
  close: () => Promise<void>;
};

export async function openStage(few: TestDatabase, scale: Scale): Promise<Stage> {
  const opened: { stop: () => Promise<unknown> }[] = [];
  const open = async <T extends { stop: () => Promise<unknown> } | undefined>(what: Promise<T>) => {
    const one = await what;
    if (one) opened.unshift(one);
    return one;
  };
  const close = async () => {
    for (const one of opened.splice(0)) await one.stop();
  };
  try {
    const many = await open(startDatabase(few.url));
    const ours = await open(startOurs(few.url));
    const oursOnMany = await open(startOurs(many.url));
    const reset = () => fillTable(few.sql, FEW);
    await reset();
    await fillTable(many.sql, scale.rows);
    const environment = { DATABASE_URL: few.url, POOL_SIZE };
    const peers = [
      await open(startNodePeer(FASTIFY, 'fastify.js', environment)),
      await open(startNodePeer(EXPRESS, 'express.js', environment)),
      await open(startFlask(few.url)),
    ].filter((peer) => peer !== undefined);
    const bare = await open(startNodePeer(BARE, 'bare.js', {}));
    const nginx = await open(startNginx(ours));
    const server = () => serverPids(few);
    const contestants = { ours, oursOnMany, peers, bare, nginx };
    await warm([ours, oursOnMany, ...peers]);
    return { scale, few, many, ...contestants, server, reset, close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Compiled code before the first figure, for all of them at once. */
async function warm(contestants: Contestant[]): Promise<void> {
  const load = { request: read.request, connections: 8, rows: FEW, seconds: 2 };
  await Promise.all(contestants.map(({ url }) => drive({ ...load, url })));
}

async function serverPids({ home = '' }: TestDatabase): Promise<number[]> {
  const [pid] = (await readFile(join(home, 'cluster', 'postmaster.pid'), 'utf8')).split('\n');
  return [Number(pid), ...(await childrenOf(Number(pid)))];
}
