/** The body of a request: its bytes, its JSON, the rows in it. */
import { isUtf8 } from 'node:buffer';
import type { IncomingMessage } from 'node:http';
import type { z } from 'zod';
import type { Resource, Row } from './columns.ts';
import { parseJson } from './dialect.ts';
import { CSV, JSON_TYPE, MERGE_PATCH } from './headers.ts';
import {
  type Fault,
  MAX_FAULTS,
  Problem,
  pointer,
  toFaults,
  tooLarge,
  unprocessable,
} from './problem.ts';

export const MAX_ARRAY = 10_000; // rows
const MAX_MEMBERS = 1600; // of a row: as many columns as PostgreSQL allows
const MAX_LEVELS = 100;
const MAX_TIME = 30_000; // ms

/** The media type of the body without its parameters. Throws 415 for a compressed body. */
export function mediaType({ headers }: IncomingMessage): string {
  const { 'content-type': type = '', 'content-encoding': coding = 'identity' } = headers;
  if (coding.trim().toLowerCase() === 'identity')
    return type.replace(/;.*/s, '').trim().toLowerCase();
  const detail = `A body in ${coding.slice(0, 100)} cannot be read.`;
  throw new Problem(415, 'PGRST102', detail, 'Send it without Content-Encoding.');
}

/** Media types besides JSON, by method; readCsv() reads the CSV. */
const OTHERS: Record<string, string[]> = { POST: [CSV], PATCH: [MERGE_PATCH] };

/** The body as JSON. Throws 400, 413, 415. */
export async function readJson(incoming: IncomingMessage, limit: number): Promise<unknown> {
  const { method = '', headers } = incoming;
  const [type, types] = [mediaType(incoming), [JSON_TYPE, ...(OTHERS[method] ?? [])]];
  if (!types.includes(type)) throw unsupported(type, types, method);
  if (Number(headers['content-length'] ?? 0) > limit) throw tooLarge(limit);
  const bytes = await readBytes(incoming, limit);
  checkSizes(bytes);
  const value = isUtf8(bytes) ? parseJson(bytes.toString().replace(/^\ufeff/, '')) : undefined;
  if (value === undefined) throw new Problem(400, 'PGRST102', 'The body is not JSON in UTF-8.');
  return value;
}

/** Counts before JSON.parse(), which would hold the event loop for 100 ms per MB of small values. */
function checkSizes(bytes: Buffer): void {
  let [depth, rows, members, rowDepth, inText] = [0, 1, 1, 1, false];
  for (let at = 0; at < bytes.length; at += 1) {
    const byte = bytes[at];
    if (byte === QUOTE) inText = !inText;
    else if (inText) at += byte === BACKSLASH ? 1 : 0;
    else if (byte === COMMA) {
      if (depth < rowDepth) rows += 1;
      else if (depth === rowDepth) members += 1;
      if (rows > MAX_ARRAY || members > MAX_MEMBERS)
        throw new Problem(413, 'PGRST102', TOO_MUCH, 'Send several smaller bodies, or CSV.');
    } else if (byte === ARRAY || byte === OBJECT) {
      if (depth === 0 && byte === ARRAY) rowDepth = 2;
      depth += 1;
      if (depth === rowDepth) members = 1;
      if (depth > MAX_LEVELS)
        throw new Problem(400, 'PGRST102', `The body has more than ${MAX_LEVELS} levels.`);
    } else if (byte === ARRAY + 2 || byte === OBJECT + 2) depth -= 1;
  }
}
const [QUOTE, BACKSLASH, COMMA, ARRAY, OBJECT] = [0x22, 0x5c, 0x2c, 0x5b, 0x7b];

const TOO_MUCH = `The array has more than ${MAX_ARRAY} rows, or a row more than ${MAX_MEMBERS} members.`;

/** With Accept-Patch (RFC 5789) or Accept-Post (W3C, Linked Data Platform). */
function unsupported(type: string, types: string[], method: string): Problem {
  const given = `A body of type ${type.slice(0, 100)} cannot be read.`;
  const detail = type ? given : 'The Content-Type is missing.';
  const hint = `Send "Content-Type: ${types.join('" or "')}".`;
  const name = `Accept-${method[0]}${method.slice(1).toLowerCase()}`;
  const headers = OTHERS[method] ? { [name]: types.join(', ') } : {};
  return new Problem(415, 'PGRST102', detail, hint, { headers });
}

/** The bytes of the body; by events, since an iterator costs twice as much. Throws 413. */
function readBytes(incoming: IncomingMessage, limit: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    const timer = setTimeout(() => incoming.emit('timeout'), MAX_TIME); // answered in server.ts
    incoming.once('close', () => clearTimeout(timer));
    if (incoming.errored) reject(incoming.errored);
    incoming.on('end', () => resolve(Buffer.concat(chunks))).on('error', reject);
    incoming.on('data', (chunk: Buffer) => {
      size += chunk.length;
      if (size > limit) reject(tooLarge(limit));
      else chunks.push(chunk);
    });
  });
}

/** The rows of a body, whether it is an array, and the names of all members. */
export type Rows = { rows: Row[]; many: boolean; names: string[] };

/** Validates an object, or an array of them; of their members only `columns`. Throws 422. */
export function toRows(body: unknown, schema: z.ZodType<Row>, columns?: string[]): Rows {
  const many = Array.isArray(body);
  const bodies: unknown[] = many ? body : [body];
  const rows: Row[] = [];
  const faults: Fault[] = [];
  for (const [at, one] of bodies.entries()) {
    const { data, error } = schema.safeParse(pick(one, columns));
    if (data) rows.push(data);
    if (error) faults.push(...toFaults(error, many ? `/${at}` : ''));
    if (faults.length >= MAX_FAULTS) break;
  }
  if (faults.length > 0) throw unprocessable(faults);
  const names = columns ?? [...new Set(bodies.flatMap((one) => Object.keys(Object(one))))];
  return { rows, many, names };
}

/** Of each object only these members. */
function pick(row: unknown, columns: string[] | undefined): unknown {
  if (!columns || !row || typeof row !== 'object' || Array.isArray(row)) return row;
  return Object.fromEntries(Object.entries(row).filter(([name]) => columns.includes(name)));
}

/** What the rows of a body are for: `part` changes rows by key or filter, `one` has its key in the path. */
export type Purpose = 'create' | 'upsert' | 'part' | 'one';

/** Valid rows as the hook changes them, which may add members. Throws 422 for the keys of new ones. */
export async function adopt(
  { rows, many, names }: Rows,
  { key, keyMaker, before }: Resource,
  purpose: Purpose,
  sub: string,
): Promise<Rows> {
  const all = new Set(names);
  for (const [at, row] of before ? rows.entries() : []) {
    const changed = (await before?.({ ...row }, { sub })) ?? row;
    for (const name of Object.keys(changed)) if (changed[name] !== row[name]) all.add(name);
    rows[at] = changed;
  }
  const isFree = purpose === 'one' || (purpose !== 'part' && keyMaker === 'service');
  const isUpsert = purpose === 'upsert' && rows[0]?.[key] !== undefined; // all rows name their keys
  const isWanted = purpose === 'part' ? many : keyMaker === 'body' || isUpsert;
  const why = purpose === 'part' ? ' for many' : ': the database makes it';
  const detail = isWanted ? 'is missing; it says which row this is for' : `cannot be set${why}`;
  const faults = rows.flatMap((row, at) => {
    if (isFree || (row[key] !== undefined) === isWanted) return [];
    return [{ pointer: (many ? `/${at}` : '') + pointer(key), detail }];
  });
  if (faults.length > 0) throw unprocessable(faults);
  return { rows, many, names: [...all] };
}

/** The canonical text of a key in a path. Throws 400. */
export function readKey({ key, toKey, columns, example }: Resource, text: string): string {
  const found = toKey(text);
  if (found !== undefined) return String(found);
  const given = JSON.stringify(text.slice(0, 50));
  const detail = `invalid input syntax for type ${columns[key]?.type}: ${given}`;
  throw new Problem(400, '22P02', detail, `A key looks like ${example[key]}.`);
}
