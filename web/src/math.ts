/** Formulas: a chunk of its own, which is loaded with the first one. The browser draws them itself, as
 * MathML, so that no font and no style comes with them. */

import temml from "temml";

/** A formula may not grow without end by its own macros, nor by the sizes that it names, in em. */
const BOUNDS = { maxExpand: 500, maxSize: [30, 30] as [number, number], trust: false };

/** Draws a formula into an element. Throws where it is none. */
export function draw(tex: string, isBlock: boolean, host: HTMLElement): void {
  const { ownerDocument } = host;
  const drawn = ownerDocument.createElement("span");
  temml.render(tex, drawn, { displayMode: isBlock, throwOnError: true, ...BOUNDS });
  host.replaceChildren(...drawn.childNodes);
}
