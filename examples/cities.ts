/**
 * Events of cities; `/events?select=city,count()` counts them per city: node examples/cities.ts
 */
import { realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { date, fail, main, resource, text } from '../app.ts';

export const cities = resource({
  path: 'events',
  table: 'events',
  key: 'uuid',
  columns: {
    city: text(100, { csv: 'City', example: 'Southampton' }),
    date: date({ csv: 'Date', example: '1912-04-10' }),
  },
});

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  main(cities, process.argv.slice(2), process.env).then(() => process.exit(0), fail);
}
