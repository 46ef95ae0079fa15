/** What is served: kinds of column, and a resource made of them. */
import { z } from 'zod';
import { StartError } from './problem.ts';
import { literal } from './sql.ts';
import { kindOf, toUuid } from './types.ts';

/** Values by column name, as JSON has them. */
export type Row = Record<string, unknown>;

/** What a kind takes besides its own arguments. */
export type Options = {
  csv?: string; // other names of the column in a CSV header, between commas
  default?: unknown; // the value of a body without this member; a function gives SQL
  nullable?: boolean; // whether null is a value, and the default
  generated?: () => string; // SQL of the value; a body must not have the member
  unique?: boolean; // whether a second row with the same value is refused with 409
  check?: Rule; // a rule of one's own, after those of the kind
  example?: unknown; // in /docs
};

/** A function that returns what is wrong with a value, or a schema with its messages. */
type Rule = z.ZodType | ((value: never) => string | undefined);

/** A condition in SQL on a quoted column name; '' is none. */
type Constraint = (name: string) => string;

/** One column, as a kind makes it. */
export type Column = Options & {
  type: string; // as PostgreSQL's format_type() prints it
  expects: string; // completes «must be …»
  schema: z.ZodType; // validates a value in a body
  constraint: Constraint; // the same rule for the table
  fault?: string | undefined; // what is wrong with the arguments of the kind
  identity?: boolean; // whether the database numbers the rows
  references?: { table: string; column: string };
  owner?: RegExp; // what the `sub` of a token must match; only the owner column has it
};

/** Changes a valid row before it is written, or throws a Problem; of a PATCH it is the members sent. */
type Before = (row: Row, caller: { sub: string }) => Row | Promise<Row>;

/** One table and the path that serves it. */
type Declaration = {
  path: string;
  table: string;
  key: string; // one of `columns`, else a UUID; the service makes a UUID that a body lacks
  columns: Record<string, Column>;
  unique?: string[] | string[][]; // columns of which no two rows have the same values
  before?: Before;
  sample?: string; // a CSV file whose rows a new embedded database gets
};

export type Resource = ReturnType<typeof resource>;

/**
 * Completes a declaration: `names` (key first), `settable` and `required` ones, an example, and the
 * validators of a whole row and of a part. Throws StartError that says what is wrong with it.
 */
export function resource(declaration: Declaration) {
  checkDeclaration(declaration);
  const { key, unique = [] } = declaration;
  const keyColumn = declaration.columns[key] ?? uuid({ example: KEY });
  const columns: Record<string, Column> = { [key]: keyColumn, ...declaration.columns };
  const [row, part]: [Schemas, Schemas] = [{}, {}];
  for (const [name, column] of Object.entries(columns)) {
    if (name === key || column.generated || column.owner) continue;
    const { schema, nullable, default: initial } = column;
    const valid = nullable ? schema.nullable() : schema;
    const absent = initial === undefined && nullable ? null : initial;
    part[name] = valid.optional();
    row[name] = absent === undefined ? valid : valid.default(absent);
    if (typeof initial === 'function') row[name] = valid.optional();
  }
  const names = Object.keys(columns);
  const example: Row = Object.fromEntries(names.map((name) => [name, columns[name]?.example]));
  const settable = Object.keys(row);
  const required = settable.filter((name) => !row[name]?.safeParse(undefined).success);
  const owner = names.find((name) => columns[name]?.owner);
  const strict = (schemas: Schemas) =>
    z.strictObject({ [key]: keyColumn.schema.optional(), ...schemas }, 'must be an object');
  const validators = { row: strict(row), part: strict(part) };
  const several = (typeof unique[0] === 'string' ? [unique] : unique) as string[][];
  const single = names.filter((name) => name === key || columns[name]?.unique);
  const uniques = [...single.map((name) => [name]), ...several];
  const { type, identity, generated } = keyColumn;
  const given: KeyMaker = type === 'uuid' ? 'service' : 'body';
  const keyMaker: KeyMaker = identity || generated ? 'database' : given;
  /** The key in a path as JSON has it; undefined for what cannot be one. */
  const toKey = (text: string) => {
    if (type === 'uuid') return toUuid(text); // a tenth of the time of the schema
    const value = /^-?\d+$/.test(text) && kindOf(type) === 'number' ? Number(text) : text;
    return keyColumn.schema.safeParse(value).data as string | number | undefined;
  };
  const notNull = new Set<string>(); // columns without nulls in the table; ensureTable() fills it
  const lists = { names, settable, required, uniques, owner };
  return { ...declaration, ...validators, columns, ...lists, example, keyMaker, toKey, notNull };
}
type Schemas = Record<string, z.ZodType>;
type KeyMaker = 'service' | 'database' | 'body'; // of the key that a new row gets
const KEY = '0192f0c1-2f3a-7bcd-8123-456789abcdef'; // an example

// --- The check of a declaration ---------------------------------------------------

const matching = (pattern: RegExp, expects: string) =>
  z.string(`must be ${expects}`).regex(pattern, `must be ${expects}`);
const NAMES = z.array(z.string());
const DECLARATION = z.strictObject({
  path: matching(/^[\w-]+$/, 'one segment of a URL, as books'),
  table: matching(
    /^[^.\0]{1,63}$/,
    'a name without a dot; search_path of the role sets the schema',
  ),
  key: matching(/^[^\0]{1,63}$/, 'the name of a column'),
  columns: z.record(
    z.string(),
    z.custom<Column>(
      (one) => Object(one).schema instanceof z.ZodType,
      'must be a kind, as text(50)',
    ),
  ),
  unique: z.union([NAMES, z.array(NAMES)], 'must be names of columns, as [a, b]').optional(),
  before: z.custom((one) => typeof one === 'function', 'must be a function').optional(),
  sample: z.string('must be the name of a CSV file').optional(),
});

/** Throws StartError with each fault: the resource, the member or column, and what is right. */
function checkDeclaration(declaration: Declaration): void {
  const { error, data } = DECLARATION.safeParse(declaration);
  const faults = (error?.issues ?? []).map((issue) => {
    if (issue.code !== 'unrecognized_keys') return `${issue.path.join('.')} ${issue.message}`;
    return `${issue.keys} is unknown; a resource has ${Object.keys(DECLARATION.shape).join(', ')}`;
  });
  if (data) {
    const names = [data.key, ...Object.keys(data.columns)];
    const unknown = (data.unique ?? []).flat().filter((name) => !names.includes(name));
    if (unknown.length > 0) faults.push(`unique has ${unknown}; the columns are ${names}`);
    for (const [name, column] of Object.entries(data.columns)) {
      const fault = faultOf(name, column, data.key);
      if (fault) faults.push(`column ${JSON.stringify(name)} ${fault}`);
    }
  }
  const { path } = Object(declaration);
  if (faults.length > 0) throw new StartError(`resource ${path}: ${faults.join('; ')}`);
}

/** What is wrong with a column and what would be right. */
function faultOf(name: string, column: Column, key: string): string | undefined {
  const { type, nullable, default: initial, schema, expects, fault } = column;
  if (RESERVED.test(name)) return 'needs another name: this one has a meaning in a query';
  if (fault) return fault;
  const unknown = Object.keys(column).filter((one) => !MEMBERS.test(one));
  if (unknown.length > 0) return `has unknown options: ${unknown}`;
  if (column.identity && name !== key) return 'cannot be identity(): only a key can';
  const isKey = /^(uuid|text|character varying.*|smallint|integer|bigint)$/.test(type);
  if (name === key && (!isKey || nullable || column.owner))
    return 'cannot be the key: one is a uuid, text, smallint, integer or bigint without null';
  const isConstant = initial !== undefined && typeof initial !== 'function';
  if (!isConstant || (initial === null && nullable) || schema.safeParse(initial).success) return;
  const given = JSON.stringify(initial);
  return `has the default ${given}, which must be ${expects}; SQL comes from a function, as now`;
}

/** The members of a column. */
const MEMBERS =
  /^(type|expects|schema|constraint|fault|csv|default|nullable|generated|unique|check|example|identity|references|owner)$/;

/** Names of parameters of a query, which no column can have; `->` begins a JSON path. */
const RESERVED = /^(|select|order|limit|offset|after|columns|on_conflict|(not\.)?(and|or)|not)$|->/;

/** Throws StartError where two tables have one path. */
export function checkPaths(resources: Resource[]): void {
  const paths = resources.map(({ path }) => path);
  const twice = paths.find((path, at) => paths.indexOf(path) !== at);
  if (twice)
    throw new StartError(`resource ${twice}: two tables have this path; each needs its own`);
}

// --- Kinds ------------------------------------------------------------------------

/** The answer of a schema to an invalid value. */
type Message = { error: (issue: { input?: unknown }) => string };
type Make<T = unknown> = (message: Message) => z.ZodType<T>;

/** A column whose schema answers `expects` for every invalid value. */
function column(
  type: string,
  expects: string,
  schema: Make,
  constraint: Constraint,
  options: Options,
  fault?: string | false,
): Column {
  const error: Message['error'] = ({ input }) =>
    input === undefined ? `is missing; it must be ${expects}` : `must be ${expects}`;
  const made = fault ? z.never() : schema({ error });
  const ruled = options.check ? made.check(obey(options.check)) : made;
  return { type, expects, schema: ruled, constraint, fault: fault || undefined, ...options };
}

function obey(rule: Rule): z.core.CheckFn<unknown> {
  return ({ value, issues }) => {
    const ask = (schema: z.ZodType) => schema.safeParse(value).error?.issues[0]?.message;
    const message = typeof rule === 'function' ? rule(value as never) : ask(rule);
    if (message) issues.push({ code: 'custom', message, input: value });
  };
}

/** What a kind is given: values, and options after them. */
type Given<T extends unknown[]> = [...T, options?: Options] | [options?: Options];
function split(given: unknown[]): [values: number[], options: Options] {
  const isOptions = (one: unknown) => typeof one === 'object' && one !== null;
  const options = given.find(isOptions) as Options | undefined;
  return [given.filter((one) => !isOptions(one)) as number[], options ?? {}];
}

export function boolean(options?: Options): Column {
  const constraint: Constraint = (name) => `${name} in (true, false)`;
  return column('boolean', 'true or false', z.boolean, constraint, { example: true, ...options });
}

/** Whole numbers of a type, within bounds or all of them. */
function whole(type: string, lowest: number, highest: number) {
  return (...given: Given<[least?: number, most?: number]>): Column => {
    const [[least = lowest, most = highest], options] = split(given);
    const expects = `a whole number from ${least} to ${most}`;
    const schema: Make = (message) => z.int(message).min(least, message).max(most, message);
    const fits = [least, most].every(Number.isSafeInteger) && least >= lowest && most <= highest;
    const fault = `must be ${type}(least, most): whole numbers from ${lowest} to ${highest}`;
    const wrong = !(fits && least <= most) && fault;
    const defaults = { example: Math.max(least, Math.min(0, most)), ...options };
    return column(type, expects, schema, between(least, most), defaults, wrong);
  };
}
export const smallint = whole('smallint', -(2 ** 15), 2 ** 15 - 1);
export const integer = whole('integer', -(2 ** 31), 2 ** 31 - 1);
/** 64 bits, of which JSON numbers have 53 without loss. */
export const bigint = whole('bigint', Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER);

/** A key that the database makes: the number of the row. */
export function identity(kind: Column = bigint()): Column {
  return { ...kind, identity: true };
}

/** A double within bounds, neither NaN nor infinite. */
export function number(...given: Given<[least?: number, most?: number]>): Column {
  const [[least = -Number.MAX_VALUE, most = Number.MAX_VALUE], options] = split(given);
  const upTo = most < Number.MAX_VALUE ? ` to ${most}` : '';
  const expects = least > -Number.MAX_VALUE ? `a number from ${least}${upTo}` : `a number${upTo}`;
  const schema: Make = (message) => z.number(message).min(least, message).max(most, message);
  const fits = [least, most].every(Number.isFinite) && least <= most;
  const wrong = !fits && 'must be number(least, most): two numbers';
  const defaults = { example: Math.max(least, Math.min(0, most)), ...options };
  return column('double precision', expects, schema, between(least, most), defaults, wrong);
}

/** A decimal number of at most `precision` digits, `scale` of them after the point. */
export function numeric(...given: Given<[precision?: number, scale?: number]>): Column {
  const [[precision = 0, scale = 0], options] = split(given);
  const defaults = { example: 1, ...options };
  if (precision === 0) return column('numeric', 'a number', z.number, () => '', defaults);
  const most = Math.min(10 ** precision - 1, Number.MAX_SAFE_INTEGER) / 10 ** scale; // as JSON has it
  const fits = (value: number) => Number(value.toFixed(scale)) === value;
  const schema: Make = (message) =>
    z.number(message).min(-most, message).max(most, message).refine(fits, message);
  const expects = `a number from ${-most} to ${most} with at most ${scale} decimals`;
  const isRight = [precision, scale].every(Number.isInteger) && precision > 0 && scale >= 0;
  const wrong = !(isRight && scale <= precision && precision <= 100) && 'must be numeric(10, 2)';
  const type = `numeric(${precision},${scale})`;
  return column(type, expects, schema, between(-most, most), defaults, wrong);
}

/** Text of 1 to `most` code points, or of any length; blanks around it are removed. */
export function text(...given: Given<[most?: number]>): Column {
  const [[most = Infinity], options] = split(given);
  const [any, longest] = [most === Infinity, 10_485_760]; // of varchar
  const expects = `text of ${any ? '' : `1 to ${most} `}characters besides blanks around it`;
  const fits = (value: string) => value !== '' && isStorable(value) && [...value].length <= most;
  const length = any ? {} : { maxLength: most };
  const bounds = { minLength: 1, ...length, pattern: NOT_BLANK }; // the JSON schema ignores refine()
  const schema: Make = (message) => z.string(message).trim().refine(fits, message).meta(bounds);
  const constraint: Constraint = (name) =>
    `${name} <> '' and ${name} = btrim(${name}, E'${BLANKS}')`;
  const defaults = { example: 'some text'.slice(0, most).trim(), ...options };
  const isRight = any || (Number.isInteger(most) && most > 0 && most <= longest);
  const wrong = !isRight && `must be text(most): a length from 1 to ${longest}, or text()`;
  const type = any ? 'text' : `character varying(${most})`;
  return column(type, expects, schema, constraint, defaults, wrong);
}

/** One of the given values. */
export function oneOf(values: string[], options?: Options): Column {
  const isRight = Array.isArray(values) && values.length > 0;
  if (!isRight) return column('text', '', z.never, () => '', {}, "must be oneOf(['a', 'b'])");
  const type = `character varying(${Math.max(...values.map((value) => value.length))})`;
  const constraint: Constraint = (name) => `${name} in (${values.map(literal).join(', ')})`;
  const schema: Make = (message) => z.enum(values, message);
  return column(type, values.join(' or '), schema, constraint, { example: values[0], ...options });
}

/** A UUID in any form that PostgreSQL accepts. */
export function uuid(options?: Options): Column {
  const schema: Make = (message) =>
    z.string(message).refine(toUuid, message).transform(toUuid).meta({ format: 'uuid' });
  const example = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11';
  return column('uuid', 'a UUID', schema, () => '', { example, ...options });
}

/** Bounds, written as values of the column are. */
type Span = Options & { from?: string; to?: string };

/** A day, as 2026-01-31. */
export function date(options?: Span): Column {
  const bounds = { from: '0001-01-01', to: '9999-12-31' };
  const defaults = { ...bounds, example: '2026-01-31', ...options };
  return span('date', 'a day, as 2026-01-31,', z.iso.date, defaults);
}

/** A moment with its UTC offset, as 2026-01-31T12:00:00Z; with `zone: false` without one. */
export function timestamp({ zone = true, ...options }: Span & { zone?: boolean } = {}): Column {
  const [utc, example] = zone ? ['Z', '2026-01-31T12:00:00+00:00'] : ['', '2026-01-31T12:00:00'];
  const bounds = { from: `0001-01-01T00:00:00${utc}`, to: `9999-12-31T23:59:59${utc}` };
  const what = `a moment${zone ? '' : ' without offset'}, as 2026-01-31T12:00:00${utc},`;
  const local = (message: Message) => z.iso.datetime({ local: true, ...message });
  const schema = (message: Message) =>
    zone ? z.iso.datetime({ offset: true, ...message }) : local(message).regex(/[^Z]$/, message);
  const type = `timestamp ${zone ? 'with' : 'without'} time zone`;
  return span(type, what, schema, { ...bounds, example, ...options });
}

/** PostgreSQL rejects UTC offsets of 16 h or more and over-long fractions of a second. */
function span(type: string, what: string, schema: Make<string>, options: Span): Column {
  const { from = '', to = '', ...others } = options;
  const at = (text: string) => Date.parse(/T[\d:.]+$/.test(text) ? `${text}Z` : text);
  const isWithin = (text: string) => at(text) >= at(from) && at(text) <= at(to);
  const isAccepted = (text: string) => text.length <= 40 && !/[+-](1[6-9]|2\d):\d\d$/.test(text);
  const fits = (text: string) => isWithin(text) && isAccepted(text);
  const make: Make = (message) => schema(message).refine(fits, message);
  const wrong = !(at(from) <= at(to)) && `has no time from ${from} to ${to}`;
  return column(type, `${what} from ${from} to ${to}`, make, between(from, to), others, wrong);
}

/** JSON of a zod schema, or any; the table checks only the outermost type. */
export function jsonb(
  schema: z.ZodType = z.unknown(),
  example: unknown = {},
  options?: Options,
): Column {
  const fits = (value: unknown) => value !== undefined && isStorable(value);
  const make: Make = (message) => schema.refine(fits, message);
  const type = String(z.toJSONSchema(schema, { io: 'input' }).type);
  const isTyped = /^(array|object|string|number|boolean)$/.test(type);
  const typed: Constraint = (name) => `jsonb_typeof(${name}) = ${literal(type)}`;
  const constraint = isTyped ? typed : () => '';
  return column('jsonb', 'JSON of its schema', make, constraint, { example, ...options });
}

/** An array of values of a simple kind; the table checks only their type. */
export function arrayOf(item: Column, options?: Options): Column {
  const schema: Make = (message) => z.array(item.schema, message);
  const defaults = { example: [item.example], ...options };
  const fault = /jsonb|\[\]/.test(item.type) && 'must be arrayOf() of a simple kind, else jsonb()';
  const expects = `an array, each value ${item.expects}`;
  return column(`${item.type}[]`, expects, schema, () => '', defaults, item.fault ?? fault);
}

/** A value that a row of another table has in this column, which is its key or unique. */
export function references(table: string, column: string, kind: Column = uuid()): Column {
  return { ...kind, references: { table, column } };
}

/** The `sub` of the token that made the row; never in a body, never changed. */
export function owner(pattern: RegExp, options?: Options): Column {
  const base = column('text', `as ${pattern.source}`, z.string, () => '', options ?? {});
  return { ...base, owner: pattern };
}

/** For `default` and `generated`: the time of the statement. */
export function now(): string {
  return 'now()';
}

function between(least: unknown, most: unknown): Constraint {
  return (name) => `${name} between ${literal(least)} and ${literal(most)}`;
}

/** PostgreSQL stores neither NUL, nor a lone surrogate, nor an infinity or deep nesting in jsonb. */
function isStorable(value: unknown, depth = 0): boolean {
  if (typeof value === 'string') return !value.includes('\0') && value.isWellFormed();
  if (typeof value !== 'object') return typeof value !== 'number' || Number.isFinite(value);
  const inside = Object.entries(value ?? {}).flat();
  return depth < 100 && inside.every((one) => isStorable(one, depth + 1));
}

/** Text without NUL that is more than blanks, for JSON Schema. */
const NOT_BLANK = '^[^\\u0000]*[^\\s\\u0000][^\\u0000]*$';

/** What String.prototype.trim() removes, for PostgreSQL's E''. */
const BLANKS =
  ' \\t\\n\\u000b\\f\\r\\u00a0\\u1680\\u2000\\u2001\\u2002\\u2003\\u2004\\u2005\\u2006\\u2007' +
  '\\u2008\\u2009\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000\\ufeff';
