/** The rows that are measured: made by PostgreSQL, the same ones in every run. */
import type postgres from 'postgres';

/** As many as the passengers of the Titanic whose data are public. */
export const FEW = 887;
export const MANY = 1_000_000;

/** The keys of row N is this and N in hexadecimal; in a path, `<key>` stands for the N of chance. */
export const KEY_PREFIX = '01930000-0000-7000-8000-';

/**
 * Empties the table and fills it, at once: the last writes of a load may still be under way. The
 * statistics and the visibility map are as after a quiet night.
 */
export async function fillTable(sql: postgres.Sql, rows: number): Promise<void> {
  await sql.begin(async (sql) => {
    await sql`truncate titanic`;
    await sql`
      insert into titanic
      select (${KEY_PREFIX} || lpad(to_hex(n), 12, '0'))::uuid, n % 5 < 2, 1 + n % 3,
        'Passenger ' || n, case n % 3 when 0 then 'female' else 'male' end,
        1 + n * 7 % 160 / 2.0, n % 4, n % 3, round((n * 37 % 51200) / 100.0, 4)::float
      from generate_series(1, ${rows}::int) n`;
  });
  await sql`vacuum analyze titanic`;
  await sql`checkpoint`;
}
