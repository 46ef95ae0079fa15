/** What the service is measured against: ratios of medians within one run. */
import type { Figure, Figures } from './measure.ts';

export const OURS = 'passengers';
export const FASTIFY = 'Fastify + pg';
export const EXPRESS = 'Express + pg';
export const FLASK = 'Flask';
export const HELLO = 'own /hello';
export const BARE = 'bare node:http';
export const PGBENCH = 'pgbench';

/** The kinds of work, as the table names them. */
export const READ = 'GET by key, 64 connections';
export const READ_ALONE = 'GET by key, 1 connection';
export const CREATE = 'POST one row, 64 connections';
export const LISTS = 'list of 100 rows, distinct offsets';
export const SAME_LIST = 'list of 100 rows, the same one';
export const FILTER = 'filter + order + limit 20, distinct values';
export const REPLACE = 'PUT by key';
export const LONG = 'GET by key, 60 s';
export const SIZE = 'GET by key at 1 000 000 rows';
export const DEEP = 'keyset page 10 000 deep at 1 000 000 rows';
export const HALF = 'p99 at half the maximum load, GET by key';
export const TOKENS = 'GET by key with a token';
export const NGINX = 'GET by key through nginx';

/** Ours by the peer's has to be at least, or at most, `limit`. `of` is the rate unless said. */
export type Target = {
  work: string;
  ours: string;
  peer: string;
  at: '>=' | '<=';
  limit: number;
  of?: 'p99';
};

export const TARGETS: Target[] = [
  { work: READ, ours: OURS, peer: FASTIFY, at: '>=', limit: 2.5 },
  { work: READ, ours: OURS, peer: FLASK, at: '>=', limit: 25 },
  { work: READ, ours: OURS, peer: HELLO, at: '>=', limit: 0.65 },
  { work: READ_ALONE, ours: OURS, peer: FASTIFY, at: '>=', limit: 1 },
  { work: CREATE, ours: OURS, peer: FASTIFY, at: '>=', limit: 3 },
  { work: CREATE, ours: OURS, peer: FLASK, at: '>=', limit: 100 },
  { work: LISTS, ours: OURS, peer: FASTIFY, at: '>=', limit: 1.3 },
  { work: SAME_LIST, ours: OURS, peer: FASTIFY, at: '>=', limit: 4 },
  { work: FILTER, ours: OURS, peer: FASTIFY, at: '>=', limit: 1.3 },
  { work: REPLACE, ours: OURS, peer: FASTIFY, at: '>=', limit: 1.5 },
  { work: LONG, ours: 'the last 5 s', peer: 'the first 5 s', at: '>=', limit: 0.9 },
  { work: SIZE, ours: OURS, peer: 'at 887 rows', at: '>=', limit: 0.9 },
  { work: DEEP, ours: OURS, peer: 'the first page', at: '>=', limit: 0.9 },
  { work: HALF, ours: OURS, peer: FASTIFY, at: '<=', limit: 1, of: 'p99' },
  { work: TOKENS, ours: OURS, peer: 'AUTH=none', at: '>=', limit: 0.85 },
  { work: NGINX, ours: OURS, peer: 'direct', at: '>=', limit: 0.5 },
];

export type Verdict = Target & { is?: number; than?: number; ratio?: number; met?: boolean };

/** Each target with its two figures and whether it is met; bare where one was not measured. */
export function judge(figures: Figures, targets = TARGETS): Verdict[] {
  return targets.map((target) => {
    const of = (name: string): Figure | undefined => figures[target.work]?.[name];
    const [ours, peer] = [of(target.ours), of(target.peer)];
    if (!ours || !peer) return target;
    const [is = Number.NaN, than = Number.NaN] = [
      ours[target.of ?? 'perSecond'],
      peer[target.of ?? 'perSecond'],
    ];
    const ratio = is / than;
    const met = target.at === '>=' ? ratio >= target.limit : ratio <= target.limit;
    return { ...target, is, than, ratio, met };
  });
}
