/** PostgREST's query string as data. Parsing knows the columns, but no SQL besides names of types. */
import { type Resource, toUuid, typeOf } from './columns.ts';
import { Problem } from './problem.ts';
import { arrayLiteral } from './sql.ts';

/** A condition on a column, or a tree of conditions. PostgreSQL reads `value` as the column's type. */
export type Filter =
  | { column: string; operator: string; modifier: string | undefined; value: string }
  | { tree: 'and' | 'or'; branches: Filter[] }
  | { not: Filter };

export type Order = { column: string; descending: boolean; nullsFirst: boolean };

/** A member of the answer: `column`, or the whole row for count(); `inner` is cast before `aggregate`. */
export type Member = { name: string; column?: string | undefined } & {
  [optional in 'inner' | 'aggregate' | 'cast']?: string | undefined;
};

/** The query string of a list. `after`: the values of the row before it, one for each of `order`. */
export type Query = {
  select?: Member[] | undefined;
  filters: Filter[];
  order: Order[];
  limit?: number;
  offset: number;
  after?: (string | null)[];
  columns?: string[];
  on_conflict?: string[];
};

/** A parameter of the query string; `filter` is each that names a column or a tree. */
export type Parameter =
  | 'filter'
  | 'select'
  | 'order'
  | 'limit'
  | 'offset'
  | 'after'
  | 'columns'
  | 'on_conflict';

/** The parameters of a list. */
export const LIST: Parameter[] = ['filter', 'select', 'order', 'limit', 'offset', 'after'];

/** PostgREST's operators (its manual, «Operators») in SQL. */
export const OPERATORS = new Map(
  Object.entries({
    eq: '=',
    neq: '<>',
    gt: '>',
    gte: '>=',
    lt: '<',
    lte: '<=',
    isdistinct: 'is distinct from',
    like: 'like',
    ilike: 'ilike',
    match: '~',
    imatch: '~*',
    in: '= any',
    is: 'is',
    fts: 'to_tsquery',
    plfts: 'plainto_tsquery',
    phfts: 'phraseto_tsquery',
    wfts: 'websearch_to_tsquery',
  }),
);
export const FULL_TEXT = /fts$/;
const ON_TEXT = /fts$|like$|match$/;
const OPERATOR = [...OPERATORS.keys()].join('|');
const MODIFIER = String.raw`(?<=fts\()\w+|(?<=(?:eq|[gl]te?|like|match)\()(?:any|all)`;
const BRACES = /^\{.*\}$/s;
const IS = /^(null|not_null|true|false|unknown)$/i;
const CASTS =
  /^(text|varchar|bool(ean)?|int(eger|2|4|8)?|(small|big)int|numeric|decimal|real|float[48]?|double precision|uuid|jsonb?|date|timestamp(tz)?)$/;
const MAX_DEPTH = 10;
const MAX_MEMBERS = 50; // json_build_object() takes 100 arguments

const NAME = String.raw`("(?:[^"\\]|\\.)*"|(?:(?!->)[^\s".,:()*])+)`;
const AGGREGATE = String.raw`(?:\.(count|sum|avg|min|max)\(\))?`;
const CAST = String.raw`(?:::([\w ]+))?`;
const PATTERNS = {
  name: new RegExp(NAME, 'ys'),
  member: new RegExp(`(?:${NAME}:(?!:))?(?:(count)\\(\\)|${NAME}${CAST}${AGGREGATE})${CAST}`, 'ys'),
  order: new RegExp(`${NAME}(?:\\.(asc|desc))?(?:\\.nulls(first|last))?`, 'ys'),
  branch: new RegExp(` *(?:((?:not\\.)?(?:and|or))(?= *\\()|${NAME})`, 'ys'),
  condition: new RegExp(`(not\\.)?(${OPERATOR})(?:\\((${MODIFIER})\\))?\\.`, 'y'),
  item: /"(?:[^"\\]|\\.)*"(?=[,)])|\{[^{}]*\}(?=[,)])|[^,)]*/sy,
  listed: /"(?:[^"\\]|\\.)*"(?=[,)])|[^,)]*/sy,
};

// --- Refusals ---------------------------------------------------------------------

const NO_EMBEDDING = 'This service embeds nothing; each table has a path of its own.';

/** What the grammar refuses, with PostgREST's codes; `$` is what was found. */
const REFUSALS = {
  column: { code: '42703', detail: 'column $ does not exist' },
  field: { status: 422, code: 'PGRST204', detail: 'column $ does not exist' },
  path: {
    code: '42883',
    detail: 'operator does not exist: -> in a list of $',
    hint: 'Name a column alone.',
  },
  embedding: {
    code: 'PGRST108',
    detail: "'$' is not an embedded resource in this request",
    hint: NO_EMBEDDING,
  },
  relation: {
    code: 'PGRST200',
    detail: 'Could not find a relationship between $',
    hint: NO_EMBEDDING,
  },
  operator: { code: '42883', detail: 'operator does not exist: $', hint: 'It is for text.' },
  syntax: { code: 'PGRST100', detail: 'The parameter $ could not be read.' },
  place: { code: 'PGRST100', detail: 'The parameter $ has no meaning here.' },
  cursor: {
    code: 'PGRST100',
    detail: 'The parameter $ is no cursor of this list.',
    hint: 'Follow the link rel="next" of the previous page, in its order.',
  },
};
type Refusal = { status?: number; code: string; detail: string; hint?: string };

function refuse(kind: keyof typeof REFUSALS, found: string, hint?: string, details?: string) {
  const refusal: Refusal = REFUSALS[kind];
  const { status = 400, code, detail } = refusal;
  const message = detail.replace('$', () => found);
  const extras = details === undefined ? {} : { details };
  return new Problem(status, code, message, hint ?? refusal.hint, extras);
}

/** The position of the parser in one parameter. */
type Reader = { resource: Resource; parameter: string; text: string; at: number };

/** Throws PGRST100, PostgREST's error for what its grammar does not have. */
function expected({ parameter, text, at, resource }: Reader, what: string): never {
  if (text.startsWith('->', at)) throw refuse('path', resource.table);
  const found = at < text.length ? JSON.stringify(text.slice(at, at + 12)) : 'end';
  const details = `unexpected ${found} at position ${at + 1} of ${text.slice(0, 200)}`;
  throw refuse('syntax', parameter, `expected ${what}`, details);
}

/** Moves past a match of the sticky pattern, if there is one. */
function skip(reader: Reader, pattern: RegExp): RegExpExecArray | null {
  pattern.lastIndex = reader.at;
  const found = pattern.exec(reader.text);
  reader.at += found?.[0].length ?? 0;
  return found;
}

function take(reader: Reader, pattern: RegExp, what: string): RegExpExecArray {
  return skip(reader, pattern) ?? expected(reader, what);
}

/** Items between commas. */
function takeList<T>(reader: Reader, item: (reader: Reader) => T): T[] {
  const items = [item(reader)];
  while (skip(reader, / *,/y)) items.push(item(reader));
  return items;
}

// --- Parameters -------------------------------------------------------------------

/** The parameters that are no filters; each may be given once. */
const SINGLE = new Map<string, (reader: Reader) => Partial<Query>>([
  ['select', (reader) => (reader.text === '' ? {} : { select: readSelect(reader) })],
  ['order', (reader) => ({ order: takeList(reader, readOrder) })],
  ['limit', (reader) => ({ limit: readInteger(reader) })],
  ['offset', (reader) => ({ offset: readInteger(reader) })],
  ['after', (reader) => ({ after: readCursor(reader) })],
  ['columns', (reader) => ({ columns: takeList(reader, () => readColumn(reader, 'field')) })],
  ['on_conflict', (reader) => ({ on_conflict: takeList(reader, () => readColumn(reader)) })],
]);

/** Parses the query string. Throws Problem 400 that says what was expected where. */
export function parseQuery(
  resource: Resource,
  parameters: Iterable<[string, string]>,
  allowed: Parameter[] = LIST,
): Query {
  const query: Query = { filters: [], order: [], offset: 0 };
  const seen = new Set<string>();
  for (const [key, text] of parameters) {
    const parameter = key.replace(/\[\d{1,4}\]$/, '');
    const reader = { resource, parameter, text, at: 0 };
    const read = SINGLE.get(parameter);
    if (text.includes('\0')) expected({ ...reader, at: text.indexOf('\0') }, 'no NUL');
    if (read && seen.has(parameter)) expected(reader, `${parameter} once`);
    if (read) Object.assign(query, read(reader));
    else query.filters.push(readFilter(reader));
    take(reader, /$/y, 'nothing more');
    const kind = (read ? parameter : 'filter') as Parameter;
    const hint = `This route takes: ${allowed.join(', ') || 'no parameters'}.`;
    if (!allowed.includes(kind)) throw refuse('place', parameter, hint);
    seen.add(parameter);
  }
  return completeOrder(resource, query);
}

function columnNamed(
  { table, names }: Resource,
  text: string,
  kind: 'column' | 'field' = 'column',
): string {
  const name = unquoted(text);
  if (names.includes(name)) return name;
  if (text.includes('->')) throw refuse('path', table);
  const [embedded = '', more] = text.split(/[.(]/);
  if (more !== undefined) throw refuse('embedding', embedded);
  throw refuse(kind, `${table}.${name}`, `The columns are ${names.join(', ')}.`);
}

function unquoted(text: string): string {
  const inQuotes = /^"((?:[^"\\]|\\.)*)"$/s.exec(text)?.[1];
  return inQuotes?.replace(/\\(.)/gs, '$1') ?? text;
}

function readColumn(reader: Reader, kind?: 'column' | 'field'): string {
  return columnNamed(reader.resource, take(reader, PATTERNS.name, 'a column')[0], kind);
}

function readInteger(reader: Reader): number {
  return Number(take(reader, /\d{1,9}(?!\d)/y, 'a whole number of up to 9 digits')[0]);
}

/** A cursor is the JSON of its values in base64url. */
function readCursor(reader: Reader): (string | null)[] {
  const [text] = take(reader, /[\w-]+/y, 'a cursor');
  const values = parseJson(Buffer.from(text, 'base64url').toString());
  const isText = (one: unknown) => one === null || typeof one === 'string';
  return Array.isArray(values) && values.every(isText) ? values : [];
}

/** The value of a JSON text, undefined for any other text. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function readOrder(reader: Reader): Order {
  const what = 'a column, .asc or .desc, .nullsfirst or .nullslast';
  const [, name = '', direction, nulls] = take(reader, PATTERNS.order, what);
  if (skip(reader, /\(/y)) throw refuse('embedding', name);
  if (skip(reader, /(?=\.)/y)) expected(reader, what);
  const descending = direction === 'desc';
  const nullsFirst = nulls ? nulls === 'first' : descending;
  return { column: columnNamed(reader.resource, name), descending, nullsFirst };
}

function readSelect(reader: Reader): Member[] {
  const all = reader.resource.names.map((name) => ({ name, column: name }));
  const members = takeList(reader, () => (skip(reader, /\*/y) ? all : [readMember(reader)])).flat();
  if (members.length > MAX_MEMBERS) expected(reader, `at most ${MAX_MEMBERS} columns`);
  return members;
}

/** `alias:column::cast.aggregate()::cast`; only the column, or `count()`, is required. */
function readMember(reader: Reader): Member {
  const spread = skip(reader, /\.\.\./y);
  const found = take(reader, PATTERNS.member, 'a column, alias:column, column::type or count()');
  const [, alias, count, name = '', inner, of, cast] = found;
  const relation = `'${reader.resource.table}' and '${name.replace(/!.*/, '')}'`;
  if (spread || skip(reader, /\(/y)) throw refuse('relation', relation);
  for (const type of [inner, cast]) {
    if (type && !CASTS.test(type)) expected(reader, `a type of ${CASTS.source}`);
  }
  const column = count ? undefined : columnNamed(reader.resource, name);
  const aggregate = count ?? of;
  return { name: unquoted(alias ?? aggregate ?? name), column, inner, aggregate, cast };
}

// --- Filters ----------------------------------------------------------------------

/** `column=op.value`, or a tree as the value of `and`, `or`, `not.and`, `not.or`. */
function readFilter(reader: Reader): Filter {
  const { parameter, resource } = reader;
  if (/^(not\.)?(and|or)$/.test(parameter)) return readTree(reader, parameter, 1);
  return readCondition(reader, columnNamed(resource, parameter), false);
}

/** `(…,…)`, what follows `and`, `or`, `not.and` or `not.or`. */
function readTree(reader: Reader, head: string, depth: number): Filter {
  take(reader, / *\(/y, '"("');
  if (depth > MAX_DEPTH) expected(reader, `at most ${MAX_DEPTH} levels`);
  const branches = takeList(reader, () => readBranch(reader, depth));
  take(reader, / *\)/y, '"," or ")"');
  const filter = { tree: head.endsWith('and') ? 'and' : 'or', branches } as const;
  return head.startsWith('not') ? { not: filter } : filter;
}

function readBranch(reader: Reader, depth: number): Filter {
  const [, head, name = ''] = take(reader, PATTERNS.branch, 'and(, or(, or a column and "."');
  if (head) return readTree(reader, head, depth + 1);
  take(reader, /\./y, '"." and an operator');
  return readCondition(reader, columnNamed(reader.resource, name), true);
}

/** What follows a column: `op.value`, `not.op.value`, `op(any).{a,b}`, `fts(config).value`. */
function readCondition(reader: Reader, column: string, inTree: boolean): Filter {
  const what = `[not.]operator. with one of ${[...OPERATORS.keys()].join(', ')}`;
  const [, not, operator = '', modifier] = take(reader, PATTERNS.condition, what);
  const type = typeOf(reader.resource, column);
  if (!isFor(type, operator)) throw refuse('operator', `${type} ${operator}`);
  const shape = modifier && !FULL_TEXT.test(operator) ? BRACES : operator === 'is' ? IS : /^/;
  const start = { ...reader };
  const value = operator === 'in' ? readItems(reader) : readValue(reader, inTree);
  if (!shape.test(value)) expected(start, shape.source);
  const pattern = /like$/.test(operator) ? value.replaceAll('*', '%') : value;
  const filter = { column, operator, modifier, value: pattern };
  return not ? { not: filter } : filter;
}

/** Whether columns of the type have the operator. */
export function isFor(type: string, operator: string): boolean {
  return !ON_TEXT.test(operator) || /^(text|character)/.test(type);
}

/** Alone, a value is the rest of the parameter; in a tree it ends at "," or ")", unless quoted. */
function readValue(reader: Reader, inTree: boolean): string {
  if (!inTree) return take(reader, /.*/sy, 'a value')[0];
  return unquoted(take(reader, PATTERNS.item, 'a value')[0]);
}

/** `(a,"b")` as a PostgreSQL array literal. */
function readItems(reader: Reader): string {
  take(reader, /\(/y, '"("');
  const item = () => unquoted(take(reader, PATTERNS.listed, 'a value')[0]);
  const items = skip(reader, /(?=\))/y) ? [] : takeList(reader, item);
  take(reader, /\)/y, '"," or ")"');
  return arrayLiteral(items);
}

// --- Order ------------------------------------------------------------------------

/** Makes the order total: the key is its last column, in groups all that they are grouped by. */
function completeOrder({ key }: Resource, query: Query): Query {
  const { order, after } = query;
  for (const column of isGrouped(query) ? groupedBy(query) : [key]) {
    if (order.some((by) => by.column === column)) continue;
    order.push({ column, descending: false, nullsFirst: false });
  }
  const fits = !isGrouped(query) && after?.length === order.length && toUuid(after.at(-1) ?? '');
  if (after && !fits) throw refuse('cursor', 'after');
  return query;
}

/** Whether the rows of the answer are groups. */
export function isGrouped({ select = [] }: Pick<Query, 'select'>): boolean {
  return select.some(({ aggregate }) => aggregate);
}

/** The columns that the rows are grouped by. */
export function groupedBy({ select = [] }: Pick<Query, 'select'>): string[] {
  return select.flatMap(({ aggregate, column }) => (aggregate || !column ? [] : column));
}
