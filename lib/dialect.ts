/** PostgREST's query string as data. Parsing knows the columns, but no SQL besides names of types. */
import type { Resource } from './columns.ts';
import { Problem } from './problem.ts';
import { arrayLiteral } from './sql.ts';
import { typeOf } from './types.ts';

/** A condition on a column, or a tree of conditions. PostgreSQL reads `value` as the column's type. */
export type Filter =
  | { column: string; operator: string; modifier: string | undefined; value: string }
  | { tree: 'and' | 'or'; branches: Filter[] }
  | { not: Filter };

type Order = { column: string; descending: boolean; nullsFirst: boolean };

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
export type Parameter = 'filter' | keyof typeof SINGLE;

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
    cs: '@>',
    cd: '<@',
    ov: '&&',
  }),
);
const OPERATOR = [...OPERATORS.keys()].join('|');
const MODIFIER = String.raw`(?<=fts\()\w+|(?<=(?:eq|[gl]te?|like|match)\()(?:any|all)`;
const CASTS =
  /^(text|varchar|bool(ean)?|int(eger|2|4|8)?|(small|big)int|numeric|decimal|real|float[48]?|double precision|uuid|jsonb?|date|timestamp(tz)?)$/;

const MAX_DEPTH = 10; // levels of trees
const MAX_CONDITIONS = 500; // of all filters together
const MAX_ITEMS = 10_000; // of one `in`
const MAX_ORDER = 32; // columns
const MAX_MEMBERS = 100;

/** A JSON path in a column; its keys have neither quotes nor arrows. */
const PATH = /^(->>?([^'"\\<>-]|-(?!>))+)+$/;
const NAME = String.raw`("(?:[^"\\]|\\.)*"|[^\r\n".,:()*]+)`;
const AGGREGATE = String.raw`(?:\.(count|sum|avg|min|max)\(\))?`;
const CAST = String.raw`(?:::([\w ]*\w))?`;
const PATTERNS = {
  name: new RegExp(NAME, 'ys'),
  member: new RegExp(`(?:${NAME}:(?!:))?(?:(count)\\(\\)|${NAME}${CAST}${AGGREGATE})${CAST}`, 'ys'),
  order: new RegExp(`${NAME}(?:\\.(asc|desc))?(?:\\.nulls(first|last))?`, 'ys'),
  branch: new RegExp(`((?:not\\.)?(?:and|or))(?=[ \\t]*\\()|${NAME}`, 'ys'),
  condition: new RegExp(`(not\\.)?(${OPERATOR})(?:\\((${MODIFIER})\\))?\\.`, 'y'),
  item: /"(?:[^"\\]|\\.)*"(?=[,)])|\{[^{}]*\}(?=[,)])|[^,)]*/sy,
  listed: /"(?:[^"\\]|\\.)*"(?=[,)])|[^,)]*/sy,
  is: /null|not_null|true|false|unknown/iy,
};

// --- Refusals ---------------------------------------------------------------------

/** The position of the parser in one parameter; `count` is of the conditions of the whole query. */
type Reader = { resource: Resource; parameter: string; text: string; at: number; count: number };

/** Throws PGRST100, PostgREST's error for what its grammar does not have. */
function expected({ parameter, text, at }: Reader, what: string): never {
  const found = at < text.length ? JSON.stringify(text.slice(at, at + 12)) : 'end';
  const details = `unexpected ${found} at position ${at + 1} of ${text.slice(0, 200)}`;
  const detail = `The parameter ${shorten(parameter)} could not be read.`;
  throw new Problem(400, 'PGRST100', detail, `expected ${what}`, { details });
}

/** PostgREST's error for an embedded table; the hint names the column that refers to it. */
function noEmbedding({ resource }: Reader, code: string, detail: string, table: string): Problem {
  const columns = Object.entries(resource.columns);
  const [name, one] = columns.find(([, { references }]) => references?.table === table) ?? [];
  const place = `${name} refers to it: GET /${table}?${one?.references?.column}=in.(…) has its rows.`;
  return new Problem(400, code, detail, name ? place : 'Name columns alone, without embedding.');
}

function shorten(text: string): string {
  return text.length > 100 ? `${text.slice(0, 100)}…` : text;
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

/** Items between commas, with blanks around each. */
function takeList<T>(reader: Reader, item: () => T, most: number, blanks = /[ \t]*/y): T[] {
  const items: T[] = [];
  do {
    skip(reader, blanks);
    items.push(item());
    skip(reader, blanks);
    if (items.length > most) expected(reader, `at most ${most} items`);
  } while (skip(reader, /,/y));
  return items;
}

// --- Parameters -------------------------------------------------------------------

/** The parameters that are no filters; each may be given once. */
const SINGLE = {
  select: (reader: Reader) => (reader.text === '' ? {} : { select: readSelect(reader) }),
  order: (reader: Reader) => ({ order: readOrders(reader) }),
  limit: (reader: Reader) => ({ limit: readInteger(reader) }),
  offset: (reader: Reader) => ({ offset: readInteger(reader) }),
  after: (reader: Reader) => ({ after: readCursor(reader) }),
  columns: (reader: Reader) => ({ columns: readColumns(reader, 'PGRST204') }),
  on_conflict: (reader: Reader) => ({ on_conflict: readConflict(reader) }),
};

/** Parses the query string. Throws Problem 400 that says what was expected where. */
export function parseQuery(
  resource: Resource,
  parameters: Iterable<[string, string]>,
  allowed: Parameter[] = LIST,
): Query {
  const query: Query = { filters: [], order: [], offset: 0 };
  const reader: Reader = { resource, parameter: '', text: '', at: 0, count: 0 };
  const seen = new Set<string>();
  for (const [key, text] of parameters) {
    const parameter = key.replace(/\[\d{1,4}\]$/, '');
    Object.assign(reader, { parameter, text, at: 0 });
    const kind = (Object.hasOwn(SINGLE, parameter) ? parameter : 'filter') as Parameter;
    if (text.includes('\0')) expected({ ...reader, at: text.indexOf('\0') }, 'no NUL');
    if (kind === 'filter') query.filters.push(readFilter(reader));
    else if (seen.has(kind)) expected(reader, `${kind} once`);
    else Object.assign(query, SINGLE[kind](reader));
    take(reader, /$/y, 'nothing more');
    const detail = `The parameter ${parameter} has no meaning here.`;
    const hint = `This route takes: ${allowed.join(', ') || 'no parameters'}.`;
    if (!allowed.includes(kind)) throw new Problem(400, 'PGRST100', detail, hint);
    seen.add(kind);
  }
  return completeOrder(resource, query);
}

/** Parameters that other services have for paging, order and choice, and what is right here. */
const ELSEWHERE: [RegExp, string][] = [
  [/^_?(sort|sort_?by|order_?by|ordering|dir|direction)$/i, 'order=column.desc'],
  [/^_?(limit|size|(per_?|max_?)?page_?size|per_?page|take|top|first|end)$/i, 'limit=10'],
  [/^_?(page|page_?number|skip|start|from)$/i, 'limit=10&offset=20'],
  [/^_?(cursor|page_?token|starting_after)$/i, 'after=…, from the Link of the previous page'],
  [/^_?(fields|columns|include|only)$/i, 'select=column,column'],
  [/^_?(q|query|search|filter|where|like)$/i, 'column=ilike.*text*'],
];

/** A column by its name, quoted or not. Throws `code` for any other name. */
function columnNamed(reader: Reader, text: string, code = '42703'): string {
  const { resource } = reader;
  const { table, names } = resource;
  const name = unquoted(text.trim());
  if (names.includes(name)) return name;
  const [, column = '', path = ''] = /^((?:(?!->).)+)(->.*)$/s.exec(text.trim()) ?? [];
  if (PATH.test(path) && code === '42703') {
    const of = columnNamed(reader, column);
    const type = typeOf(resource, of);
    if (type === 'jsonb') return of + path;
    throw new Problem(400, '42883', `operator does not exist: ${type} ->`, 'It is for jsonb.');
  }
  if (/[.(]/.test(name)) throw notEmbedded(reader, name.replace(/[.(].*/s, ''));
  const right = ELSEWHERE.find(([pattern]) => pattern.test(name))?.[1];
  const hint = `${right ? `Here it is ${right}. ` : ''}The columns are ${names.join(', ')}.`;
  const detail = `column ${table}.${shorten(name)} does not exist`;
  throw new Problem(code === '42703' ? 400 : 422, code, detail, hint);
}

function notEmbedded(reader: Reader, name: string): Problem {
  const detail = `'${shorten(name)}' is not an embedded resource in this request`;
  return noEmbedding(reader, 'PGRST108', detail, name);
}

function unquoted(text: string): string {
  const inQuotes = /^"((?:[^"\\]|\\.)*)"$/s.exec(text)?.[1];
  return inQuotes?.replace(/\\(.)/gs, '$1') ?? text;
}

function readColumns(reader: Reader, code?: string): string[] {
  const item = () => columnNamed(reader, take(reader, PATTERNS.name, 'a column')[0], code);
  return [...new Set(takeList(reader, item, MAX_ITEMS))];
}

/** Columns with a unique index, in any order. */
function readConflict(reader: Reader): string[] {
  const { uniques } = reader.resource;
  const columns = readColumns(reader).sort();
  if (uniques.some((some) => String(some.toSorted()) === String(columns))) return columns;
  const hint = `on_conflict can be ${uniques.join(' or ')}.`;
  throw new Problem(400, '42P10', 'There is no unique index on these columns.', hint);
}

/** PostgreSQL's bigint ends later than the integers of JavaScript. */
function readInteger(reader: Reader): number {
  const [digits] = take(reader, /\d+/y, 'a whole number');
  return Math.min(Number(digits), Number.MAX_SAFE_INTEGER);
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

/** Of a column that is named twice the first counts, as in SQL. */
function readOrders(reader: Reader): Order[] {
  const orders = new Map<string, Order>();
  const add = () => {
    const order = readOrder(reader);
    if (!orders.has(order.column)) orders.set(order.column, order);
    if (orders.size > MAX_ORDER) expected(reader, `at most ${MAX_ORDER} columns`);
  };
  takeList(reader, add, Infinity);
  return [...orders.values()];
}

function readOrder(reader: Reader): Order {
  const what = 'a column, .asc or .desc, .nullsfirst or .nullslast';
  const [, name = '', direction, nulls] = take(reader, PATTERNS.order, what);
  if (skip(reader, /\(/y)) throw notEmbedded(reader, name);
  if (skip(reader, /(?=\.)/y)) expected(reader, what);
  const descending = direction === 'desc';
  const nullsFirst = nulls ? nulls === 'first' : descending;
  return { column: columnNamed(reader, name), descending, nullsFirst };
}

function readSelect(reader: Reader): Member[] {
  const all = reader.resource.names.map((name) => ({ name, column: name }));
  const item = () => (skip(reader, /\*/y) ? all : [readMember(reader)]);
  const members = takeList(reader, item, MAX_MEMBERS).flat();
  if (members.length > MAX_MEMBERS) expected(reader, `at most ${MAX_MEMBERS} items`);
  return members;
}

/** `alias:column::cast.aggregate()::cast`; only the column, or `count()`, is required. */
function readMember(reader: Reader): Member {
  const spread = skip(reader, /\.\.\./y);
  const found = take(reader, PATTERNS.member, 'a column, alias:column, column::type or count()');
  const [, alias, count, name = '', inner, of, cast] = found;
  const other = name.replace(/!.*/, '').trim();
  const related = `'${reader.resource.table}' and '${shorten(other)}'`;
  if (spread || skip(reader, /\(/y))
    throw noEmbedding(
      reader,
      'PGRST200',
      `Could not find a relationship between ${related}`,
      other,
    );
  for (const type of [inner, cast])
    if (type && !CASTS.test(type)) expected(reader, `a type of ${CASTS.source}`);
  const column = count ? undefined : columnNamed(reader, name);
  const aggregate = count ?? of;
  const shown = alias ?? aggregate ?? name.replace(/(?:->>?\d+)+$/, '').replace(/^.*->>?/s, '');
  return { name: unquoted(shown.trim()), column, inner, aggregate, cast };
}

// --- Filters ----------------------------------------------------------------------

/** `column=op.value`, or a tree as the value of `and`, `or`, `not.and`, `not.or`. */
function readFilter(reader: Reader): Filter {
  const { parameter } = reader;
  if (/^(not\.)?(and|or)$/.test(parameter)) return readTree(reader, parameter, 1);
  return readCondition(reader, columnNamed(reader, parameter), false);
}

/** `(…,…)`, what follows `and`, `or`, `not.and` or `not.or`. */
function readTree(reader: Reader, head: string, depth: number): Filter {
  take(reader, /[ \t]*\(/y, '"("');
  if (depth > MAX_DEPTH) expected(reader, `at most ${MAX_DEPTH} levels`);
  const branches = takeList(reader, () => readBranch(reader, depth), MAX_CONDITIONS);
  take(reader, /\)/y, '"," or ")"');
  const filter = { tree: head.endsWith('and') ? 'and' : 'or', branches } as const;
  return head.startsWith('not') ? { not: filter } : filter;
}

function readBranch(reader: Reader, depth: number): Filter {
  const [, head, name = ''] = take(reader, PATTERNS.branch, 'and(, or(, or a column and "."');
  if (head) return readTree(reader, head, depth + 1);
  take(reader, /\./y, '"." and an operator');
  return readCondition(reader, columnNamed(reader, name), true);
}

/** What follows a column: `op.value`, `not.op.value`, `op(any).{a,b}`, `fts(config).value`. */
function readCondition(reader: Reader, column: string, inTree: boolean): Filter {
  const like = inTree ? '' : ` as in ${column}=eq.${shorten(reader.text) || 'x'}`;
  const type = typeOf(reader.resource, column);
  const operators = [...OPERATORS.keys()].filter((one) => isFor(type, one)).join(', ');
  const what = `[not.]operator.value${like}; operators: ${operators}`;
  reader.count += 1;
  if (reader.count > MAX_CONDITIONS) expected(reader, `at most ${MAX_CONDITIONS} conditions`);
  const [, not, operator = '', modifier] = take(reader, PATTERNS.condition, what);
  const missing = `operator does not exist: ${type} ${operator}`;
  const kinds = SPECIAL.find(([some]) => some.test(operator))?.[2];
  if (!isFor(type, operator)) throw new Problem(400, '42883', missing, `It is for ${kinds}.`);
  if (/^(any|all)$/.test(modifier ?? '')) take(reader, /(?=\{)/y, 'a list as {a,b}');
  const value = readValue(reader, operator, inTree);
  const filter = { column, operator, modifier, value };
  return not ? { not: filter } : filter;
}

/** The operators of some types only. */
const SPECIAL: [operators: RegExp, types: RegExp, kinds: string][] = [
  [/fts$|like$|match$/, /^(text|character)[^[]*$/, 'text'],
  [/^c[sd]$/, /\[\]$|^jsonb$/, 'arrays and jsonb'],
  [/^ov$/, /\[\]$/, 'arrays'],
  [/^in$/, /[^\]]$/, 'all kinds but arrays'],
];

/** Whether columns of the type have the operator. */
export function isFor(type: string, operator: string): boolean {
  return SPECIAL.every(([operators, types]) => !operators.test(operator) || types.test(type));
}

/** Alone, a value is the rest of the parameter; in a tree it ends at "," or ")", unless quoted. */
function readValue(reader: Reader, operator: string, inTree: boolean): string {
  if (operator === 'in') return readItems(reader);
  if (operator === 'is') return take(reader, PATTERNS.is, PATTERNS.is.source)[0];
  const value = inTree
    ? unquoted(take(reader, PATTERNS.item, 'a value')[0])
    : take(reader, /.*/sy, 'a value')[0];
  return /like$/.test(operator) ? value.replaceAll('*', '%') : value;
}

/** `(a,"b")` as a PostgreSQL array literal. */
function readItems(reader: Reader): string {
  take(reader, /\(/y, '"("');
  const item = () => unquoted(take(reader, PATTERNS.listed, 'a value')[0]);
  const items = skip(reader, /(?=\))/y) ? [] : takeList(reader, item, MAX_ITEMS, /(?:)/y);
  take(reader, /\)/y, '"," or ")"');
  return arrayLiteral(items);
}

// --- Order ------------------------------------------------------------------------

/** Makes the order total: the key is its last column, in groups all that they are grouped by. */
function completeOrder({ key, toKey }: Resource, query: Query): Query {
  const { after } = query;
  const groups = groupedBy(query);
  const ordered = query.order.map(({ column }) => column);
  const rest = (groups ?? [key]).filter((column) => !ordered.includes(column));
  const last = rest.map((column) => ({ column, descending: false, nullsFirst: false }));
  const order: Order[] = [...query.order, ...last];
  const at = order.findIndex(({ column }) => column === key);
  const fits = !groups && after?.length === order.length && toKey(after[at] ?? '') !== undefined;
  const detail = 'The parameter after is no cursor of this list.';
  const hint = 'Follow the link rel="next" of the previous page, in its order.';
  if (after && !fits) throw new Problem(400, 'PGRST100', detail, hint);
  return { ...query, order };
}

/** The columns that the rows of the answer are grouped by; undefined where they are no groups. */
export function groupedBy({ select = [] }: Pick<Query, 'select'>): string[] | undefined {
  if (!select.some(({ aggregate }) => aggregate)) return undefined;
  return select.flatMap(({ aggregate, column }) => (aggregate || !column ? [] : column));
}
