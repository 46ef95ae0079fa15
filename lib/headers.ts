/** Header fields of a request as data: Accept, Prefer, Range, and the lists of entity tags. */
import { badRange, Problem } from './problem.ts';

export const JSON_TYPE = 'application/json';
export const MERGE_PATCH = 'application/merge-patch+json';
export const OBJECT = 'application/vnd.pgrst.object+json';
export const CSV = 'text/csv';
export const NDJSON = 'application/x-ndjson';

/** Other names that PostgREST has for the media types of answers. */
const ALIASES: Record<string, string> = {
  'application/vnd.pgrst.object': OBJECT,
  'application/vnd.pgrst.array': JSON_TYPE,
  'application/vnd.pgrst.array+json': JSON_TYPE,
};
/** Parameters of a media type that would change the answer, and that no answer honours. */
const UNSUPPORTED = /^(nulls=|header=absent)/;

const MAX_RANGES = 100; // of Accept; the others are ignored
const MAX_TAGS = 4096; // characters of If-Match and If-None-Match

type MediaRange = { range: string; specificity: number; quality: number; place: number };

/**
 * The offered media type that Accept prefers (RFC 9110, 12.5.1); equal weights are decided by the
 * more specific range, then by the order in Accept, then by the order of `offered`. Throws 406.
 */
export function negotiate<T extends string>(accept: string | undefined, offered: T[]): T {
  if (offered[0] && (!accept || accept === '*/*')) return offered[0];
  const ranges = (accept ?? '*/*').toLowerCase().split(',', MAX_RANGES).flatMap(parseMediaRange);
  const accepted = offered.flatMap((type) => {
    const names = [type, `${type.split('/')[0]}/*`, '*/*'];
    const found = names.flatMap((name) => ranges.find(({ range }) => range === name) ?? []);
    return found[0] && found[0].quality > 0 ? [{ ...found[0], type }] : [];
  });
  const [best] = accepted.sort(
    (a, b) => b.quality - a.quality || b.specificity - a.specificity || a.place - b.place,
  );
  if (best) return best.type;
  const hint = `This route answers ${offered.join(', ')}.`;
  throw new Problem(406, 'PGRST107', 'None of these media types can be answered.', hint);
}

function parseMediaRange(text: string, place: number): MediaRange[] {
  const [name = '', ...parameters] = text.split(';').map((part) => part.trim());
  const range = ALIASES[name] ?? name;
  if (parameters.some((parameter) => UNSUPPORTED.test(parameter))) return [];
  const weight = parameters.find((parameter) => /^q *=/.test(parameter))?.replace(/^q *= */, '');
  const quality = weight === undefined ? 1 : Math.min(Math.max(Number(weight) || 0, 0), 1);
  const specificity = range === '*/*' ? 0 : range.endsWith('/*') ? 1 : 2;
  return [{ range, specificity, quality, place }];
}

/** The preferences that the service knows (RFC 7240; PostgREST's manual, «Prefer Header»). */
const PREFERENCES = new Map([
  ['return', /^(minimal|headers-only|representation)$/],
  ['count', /^(exact|planned|estimated)$/],
  ['resolution', /^(merge|ignore)-duplicates$/],
  ['missing', /^default$/],
  ['handling', /^(strict|lenient)$/],
  ['max-affected', /^\d{1,9}$/],
  ['tx', /^commit$/],
]);

/** Preferences by name. */
export type Preferences = { [name: string]: string | undefined };

/** The known preferences; of a repeated one the first. Throws 400 for others with `handling=strict`. */
export function parsePrefer(header: string): Preferences {
  const given: Preferences = {};
  const unknown: string[] = [];
  for (const [text] of header.matchAll(/(?:"(?:[^"\\]|\\.?)*(?:"|$)|[^",;])+/g)) {
    const [, name = '', quoted, token = ''] =
      /^([^\s=]+)(?:\s*=\s*(?:"(.*)"|(\S*)))?$/.exec(text.trim()) ?? [];
    const key = name.toLowerCase();
    const value = quoted?.replace(/\\(.)/g, '$1') ?? token;
    if (PREFERENCES.get(key)?.test(value)) given[key] ??= value;
    else if (text.trim()) unknown.push(text.trim());
  }
  if (given.handling !== 'strict' || unknown.length === 0) return given;
  const details = `Invalid preferences: ${unknown.join(', ').slice(0, 200)}`;
  const detail = 'Invalid preferences given with handling=strict';
  throw new Problem(400, 'PGRST122', detail, undefined, { details });
}

/**
 * The versions in a list of entity tags, `*` for any; undefined without the header. `W/` is dropped:
 * only a proxy that compresses can have added it.
 */
export function parseTags(header: string | undefined): string[] | '*' | undefined {
  const value = header?.trim();
  if (value === undefined || value === '*') return value;
  if (value.length > MAX_TAGS)
    throw new Problem(400, 'PGRST100', `A list of entity tags has at most ${MAX_TAGS} characters.`);
  return [...value.matchAll(/(?:W\/)?"([^"]*)"/g)].flatMap(([, version]) => {
    return /^\d+$/.test(version ?? '') ? [String(version)] : [];
  });
}

/** `0-9`, `items=0-9` or, to the last row, `0-`; undefined for other units. Throws 416. */
export function parseRange(header = ''): { from: number; to: number } | undefined {
  const [, first, last] = /^(?:items *= *)?(\d{1,15})-(\d{1,15})?$/i.exec(header.trim()) ?? [];
  if (first === undefined) return undefined;
  const [from, to] = [Number(first), Number(last ?? Infinity)];
  if (to < from) throw badRange(`The range ${first}-${last} ends before it begins.`);
  return { from, to };
}
