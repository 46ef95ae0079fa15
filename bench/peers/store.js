// The statements of the Fastify and Express peers: a pool of pg, every statement prepared by its name.
import pg from 'pg';

export const COLUMNS = [
  'survived',
  'passengerClass',
  'name',
  'sex',
  'age',
  'siblingsOrSpousesAboard',
  'parentsOrChildrenAboard',
  'fare',
];
const ORDERS = { fare: 'fare, uuid', 'fare.desc': 'fare desc, uuid' };

const all = ['uuid', ...COLUMNS].map((name) => `"${name}"`).join(', ');
const places = ['uuid', ...COLUMNS].map((_, at) => `$${at + 1}`).join(', ');
const updates = COLUMNS.map((name) => `"${name}" = excluded."${name}"`).join(', ');

const READ = `select ${all} from titanic where uuid = $1`;
const CREATE = `insert into titanic (${all}) values (${places}) returning ${all}`;
const REPLACE = `insert into titanic (${all}) values (${places})
  on conflict (uuid) do update set ${updates} returning ${all}, xmax = 0 as created`;

export function createStore({ DATABASE_URL, POOL_SIZE }) {
  const pool = new pg.Pool({ connectionString: DATABASE_URL, max: Number(POOL_SIZE) });

  async function ask(name, text, values) {
    return (await pool.query({ name, text, values })).rows;
  }

  const valuesOf = (uuid, body) => [uuid, ...COLUMNS.map((name) => body[name])];

  return {
    read: async (uuid) => (await ask('read', READ, [uuid]))[0],
    create: async (uuid, body) => (await ask('create', CREATE, valuesOf(uuid, body)))[0],

    async replace(uuid, body) {
      const [{ created, ...row }] = await ask('replace', REPLACE, valuesOf(uuid, body));
      return { created, row };
    },

    list({ limit, offset, sex, olderThan, order }) {
      const values = [limit, offset];
      const tests = [];
      if (sex !== undefined) tests.push(`sex = $${values.push(sex)}`);
      if (olderThan !== undefined) tests.push(`age > $${values.push(olderThan)}`);
      const where = tests.length > 0 ? `where ${tests.join(' and ')}` : '';
      const by = ORDERS[order] ?? 'uuid';
      const text = `select ${all} from titanic ${where} order by ${by} limit $1 offset $2`;
      return ask(`list ${by} ${tests.length}`, text, values);
    },
  };
}
