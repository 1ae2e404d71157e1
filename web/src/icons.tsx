/** The icons: strokes of one width, drawn for this page. */

const PATHS = {
  image: "M3.5 4.5h13v11h-13zM3.5 13l4-4 3.5 3.5 2-2 3.5 3.5M12.5 7.5h.01",
  menu: "M3 6h14M3 10h14M3 14h9",
  plus: "M10 4v12M4 10h12",
  again: "M15.5 8A6 6 0 104.9 13.2M15.8 3.8v4.4h-4.4",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  send: "M10 16V4.5M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  copy: "M7.5 7.5h8v8h-8zM4.5 12.5v-8h8",
  check: "M4.5 10.5l3.5 3.5 7.5-8",
  close: "M5 5l10 10M15 5L5 15",
  sliders: "M4 6h5M13 6h3M4 14h2M10 14h6M11 4v4M8 12v4",
  search: "M9 4a5 5 0 100 10A5 5 0 009 4zM12.7 12.7L16.5 16.5",
  pencil: "M4 16l.8-3.2L13 4.6l2.4 2.4-8.2 8.2L4 16z",
  trash: "M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6",
  more: "M4.5 10h.01M10 10h.01M15.5 10h.01",
  pin: "M7 3.5h6M8 3.5v5l-2.5 3h9L12 8.5v-5M10 11.5v5",
  archive: "M3.5 5h13v3h-13zM5 8v8h10V8M8.5 11h3",
  save: "M10 3.5v9M6 9l4 4 4-4M4 16.5h12",
  person: "M10 4a3 3 0 100 6 3 3 0 000-6zM4.5 16.5c.6-3 2.8-4.5 5.5-4.5s4.9 1.5 5.5 4.5",
  down: "M10 4v11.5M5 11l5 5 5-5",
  sun: "M10 7a3 3 0 100 6 3 3 0 000-6zM10 2.5v1.5M10 16v1.5M2.5 10H4M16 10h1.5M4.7 4.7l1 1M14.3 14.3l1 1M15.3 4.7l-1 1M5.7 14.3l-1 1",
} as const;

export function Icon({ name }: { name: keyof typeof PATHS }) {
  return (
    <svg class="icon" viewBox="0 0 20 20" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}
