/** PostgreSQL's types: which there are in JSON, and values as its text. */
import { arrayLiteral } from './sql.ts';

/** How JSON has a value: `time` and `array` in the form of to_json(), `json` is JSON already. */
export type JsonKind = 'boolean' | 'number' | 'text' | 'time' | 'array' | 'json';

/** The kind of a PostgreSQL type, by its name. */
export function kindOf(type: string): JsonKind {
  if (type.endsWith('[]')) return 'array';
  if (/^bool/.test(type)) return 'boolean';
  if (/^(small|big)?int(?!erval)|^(numeric|decimal|real|float|double)/.test(type)) return 'number';
  if (/^json/.test(type)) return 'json';
  return /^(date|time)/.test(type) ? 'time' : 'text';
}

type Typed = { columns: Record<string, { type: string }> };

/** The PostgreSQL type of a column, or of a JSON path in one. */
export function typeOf({ columns }: Typed, name: string): string {
  return columns[name]?.type ?? (/->>[^>]*$/.test(name) ? 'text' : 'jsonb');
}

/** The type of an array of values of a column; a length would truncate the values. */
export function arrayTypeOf(resource: Typed, name: string): string {
  return `${typeOf(resource, name).replace(/\(.*\)/, '')}[]`;
}

/** The kind that declares an existing type; undefined where there is none. */
export function kindFor(type: string): string | undefined {
  if (type.endsWith('[]')) {
    const item = kindFor(type.slice(0, -2));
    return item && `arrayOf(${item})`;
  }
  const [, name = '', given = '()'] = /^([a-z ]+)(\(.*\))?$/.exec(type) ?? [];
  if (name === 'timestamp without time zone') return 'timestamp({ zone: false })';
  if (name === 'timestamp with time zone') return 'timestamp()';
  const kind = /^(boolean|smallint|integer|bigint|numeric|text|uuid|date|jsonb)$/.test(name)
    ? name
    : { 'double precision': 'number', 'character varying': 'text' }[name];
  return kind && kind + given.replace(',', ', ');
}

/** A value as the text that PostgreSQL reads; null is JSON where a column of JSON is not nullable. */
export function textOf(
  { type, nullable }: { type: string; nullable?: boolean },
  value: unknown,
): string | null {
  const kind = kindOf(type);
  if (value === undefined || (value === null && (kind !== 'json' || nullable))) return null;
  if (kind === 'array') return arrayLiteral(value as unknown[]);
  return kind === 'json' ? JSON.stringify(value) : String(value);
}

/** The canonical form of any UUID that PostgreSQL accepts (its manual, 8.12), else undefined. */
export function toUuid(value: string): string | undefined {
  if (/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(value)) return value;
  const bare = /^\{.*\}$/.test(value) ? value.slice(1, -1) : value;
  if (!/^(?:[0-9a-f]{4}-?){7}[0-9a-f]{4}$/i.test(bare)) return undefined;
  const hex = bare.replaceAll('-', '').toLowerCase();
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}
