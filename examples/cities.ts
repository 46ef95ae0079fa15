/**
 * Events of cities, counted per city by `/events?select=city,count()`:
 * BASE_PATH=/ws/cities npm start -- examples/cities.ts
 */
import { date, resource, text } from '../lib/columns.ts';

export default resource({
  path: 'events',
  table: 'events',
  key: 'uuid',
  columns: {
    city: text(100, { csv: 'City', example: 'Southampton' }),
    date: date({ csv: 'Date', example: '1912-04-10' }),
  },
});
