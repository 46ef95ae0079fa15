/** What is measured: each kind of work as a request, in the service's dialect and in its peers'. */
import { KEY_PREFIX } from './database.ts';
import type { Request } from './load.ts';

/** `plain`: where the peers have another URL for the same. `writes`: the table is made anew before. */
export type Work = {
  request: Request;
  plain?: Request;
  connections: number;
  writes?: boolean;
};

const get = (path: string): Request => ({ method: 'GET', path });

const ROW = `/passengers/${KEY_PREFIX}<key>`;
const BODY = JSON.stringify({
  survived: true,
  passengerClass: 2,
  name: 'Passenger <counter:1000000000>',
  sex: 'female',
  age: 33.5,
  siblingsOrSpousesAboard: 1,
  parentsOrChildrenAboard: 0,
  fare: 26.55,
});

export const read: Work = { request: get(ROW), connections: 64 };
export const readAlone: Work = { ...read, connections: 1 };
export const hello: Work = { request: get('/hello'), connections: 64 };
export const create: Work = {
  request: { method: 'POST', path: '/passengers', body: BODY },
  connections: 64,
  writes: true,
};
export const replace: Work = {
  request: { method: 'PUT', path: ROW, body: BODY },
  connections: 64,
  writes: true,
};
/** 788 offsets, one after the other: no two of 64 requests are equal. */
export const lists: Work = {
  request: get('/passengers?limit=100&offset=<counter:788>'),
  connections: 64,
};
export const sameList: Work = { request: get('/passengers?limit=100'), connections: 64 };
export const filter: Work = {
  request: get('/passengers?sex=eq.male&age=gt.20.<counter:1000>&order=fare.desc&limit=20'),
  plain: get('/passengers?sex=male&olderThan=20.<counter:1000>&order=fare.desc&limit=20'),
  connections: 64,
};

/** 20 rows of the large table; the filter passes all and makes each request another one. */
export const PAGE = 20;
export const DEPTH = 10_000;
export function page(after: string): Work {
  const path = `/passengers?fare=gt.-1.<counter:1000>&limit=${PAGE}${after}`;
  return { request: get(path), connections: 64 };
}
