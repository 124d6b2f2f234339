// A grid of numbers as a canvas: click, arrow keys, hover; what is picked is sent, never kept here.
// The selected cell comes from mark.js, so that the numbers are not sent again with every click.
const TOP = 8;
const FONT = "12px sans-serif";
const LONGEST = { row: 96, col: 76 }; // of labels, in pixels
const NOISE = 1e-6; // what is below it is no more than rounding leaves

const decode = (text, Type) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Type(bytes.buffer);
};

const isDark = (element) => {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  probe.fillStyle = getComputedStyle(element).getPropertyValue("--st-background-color").trim() || "#ffffff";
  probe.fillRect(0, 0, 1, 1);
  const [red, green, blue] = probe.getImageData(0, 0, 1, 1).data;
  return 0.3 * red + 0.6 * green + 0.1 * blue < 110;
};

const shown = (value) => {
  if (Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size < NOISE) return size ? "≈0" : "0";
  const text = size < 0.001 || size >= 1e5 ? size.toExponential(2) : size.toFixed(size < 10 ? 3 : 1);
  return (value < 0 ? "−" : "") + text;
};

const round = (value) => shown(value).replace(/(\.\d*?)0+(?=e|$)/, "$1").replace(/\.(?=e|$)/, "");

// As much of a text as fits, from its beginning; what is drawn beyond the cell would be read as another word.
const fitted = (pen, text, width) => {
  if (pen.measureText(text).width <= width) return text;
  let length = text.length - 1;
  while (length > 1 && pen.measureText(`${text.slice(0, length)}…`).width > width) length -= 1;
  return `${text.slice(0, length)}…`;
};

// Every how many places a label is drawn, so that each has `room`: 1, 2, 5, 10, 20, …
const stepFor = (room, place) => {
  const least = Math.ceil(room / place);
  const ten = 10 ** Math.floor(Math.log10(Math.max(1, least)));
  return [1, 2, 5, 10].map((factor) => factor * ten).find((step) => step >= least);
};

class Heat {
  constructor(root) {
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.tip = root.querySelector(".tip");
    this.live = root.querySelector(".live");
    this.slider = root.querySelector(".threshold");
    this.cursor = null;
    this.listen();
  }

  // What to show

  update(data, send) {
    this.send = send;
    const isNew = !this.data || this.data.stamp !== data.stamp;
    this.data = data;
    if (isNew) {
      this.values = decode(data.values, Float32Array);
      this.words = data.words && decode(data.word_at, Int32Array);
      this.luts = { light: decode(data.light, Uint8Array), dark: decode(data.dark, Uint8Array) };
      this.threshold = data.threshold;
      this.cursor = null;
    }
    this.canvas.setAttribute("aria-label", data.label);
    this.root.querySelector(".bar").hidden = data.threshold === null;
    if (data.threshold !== null) {
      this.slider.max = data.threshold_max;
      this.slider.step = data.threshold_max / 100;
      this.slider.value = this.threshold;
      this.root.querySelector(".name").textContent = data.threshold_name;
    }
    this.draw();
  }

  get selected() {
    return window.interpMarks?.get(this.data.grid) ?? null;
  }

  // Where the keyboard sets out from: in a row that is selected whole, its first cell.
  outset() {
    const [row, col] = this.selected ?? [0, 0];
    return [row, col ?? 0];
  }

  text(row, col) {
    return this.words ? this.data.words[this.words[row * this.data.cols + col]] : "";
  }

  at(row, col) {
    return this.values[row * this.data.cols + col];
  }

  isHatched(value) {
    return this.threshold !== null && value < this.threshold;
  }

  // Where it is

  // As wide as its place, as tall as the window leaves below what stands above.
  layout() {
    const width = this.root.clientWidth || 600;
    const { rows, cols, row_labels: rowLabels, col_labels: colLabels, low, high } = this.data;
    const pen = this.canvas.getContext("2d");
    pen.font = FONT;
    const longest = (labels) => Math.max(...labels.map((label) => pen.measureText(label).width), 6);
    const left = 26 + Math.min(this.rowRoom(), longest(rowLabels));
    const right = 34 + longest([round(low), round(high)]);
    const cellWidth = Math.min(this.words ? 110 : 64, (width - left - right) / cols);
    const label = longest(colLabels);
    const areNumbers = label < 32;
    const isTurned = !areNumbers && label + 6 > cellWidth;
    const colStep = stepFor(areNumbers ? label + 8 : 14, cellWidth);
    const bottom = 26 + (isTurned ? Math.min(LONGEST.col, label) : 14);
    const cellHeight = Math.max(1, Math.min(44, (this.room() - TOP - bottom) / rows));
    const height = rows * cellHeight + TOP + bottom;
    return { width, cellWidth, cellHeight, height, left, right, bottom, isTurned, colStep };
  }

  rowRoom() {
    return Math.max(LONGEST.row, 0.32 * this.root.clientWidth);
  }

  // What is left for what stands below: given, or as many lines as the notes take.
  below() {
    const { below, n_letters: letters } = this.data;
    return below ?? (letters ? 6 + 20 * Math.ceil((letters * 6.4) / this.root.clientWidth) : 0);
  }

  room() {
    if (document.fullscreenElement) return window.innerHeight - 70;
    const page = this.root.getRootNode().host?.closest("[data-testid=stMain]");
    const top = this.root.getBoundingClientRect().top + (page ? page.scrollTop : 0);
    const isFirst = top < 0.6 * window.innerHeight;
    const bar = this.data.threshold === null ? 0 : 32;
    return Math.max(220, window.innerHeight - (isFirst ? top : 100) - bar - this.below() - 14);
  }

  y(row) {
    const { cellHeight } = this.box;
    return TOP + (this.data.upward ? this.data.rows - 1 - row : row) * cellHeight;
  }

  x(col) {
    return this.box.left + col * this.box.cellWidth;
  }

  cellAt(event) {
    const bounds = this.canvas.getBoundingClientRect();
    const scale = this.box.width / bounds.width;
    const col = Math.floor(((event.clientX - bounds.left) * scale - this.box.left) / this.box.cellWidth);
    const down = Math.floor(((event.clientY - bounds.top) * scale - TOP) / this.box.cellHeight);
    const row = this.data.upward ? this.data.rows - 1 - down : down;
    const isInside = col >= 0 && col < this.data.cols && row >= 0 && row < this.data.rows;
    return isInside ? [row, col] : null;
  }

  // Drawing

  colour(value) {
    const { low, high } = this.data;
    const share = Math.max(0, Math.min(1, (value - low) / (high - low || 1)));
    const i = 3 * Math.round(share * 255);
    return [this.lut[i], this.lut[i + 1], this.lut[i + 2]];
  }

  draw() {
    if (!this.data || !this.root.clientWidth) return;
    this.box = this.layout();
    const { width, height } = this.box;
    const dpr = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * dpr);
    this.canvas.height = Math.round(height * dpr);
    this.canvas.style.height = `${height}px`;
    this.canvas.dataset.cells = JSON.stringify({ left: this.box.left, top: TOP, width: this.box.cellWidth, height: this.box.cellHeight });
    const dark = isDark(this.root);
    this.lut = dark ? this.luts.dark : this.luts.light;
    const style = getComputedStyle(this.root);
    this.ink = style.getPropertyValue("--st-text-color").trim() || (dark ? "#fafafa" : "#262730");
    this.paper = style.getPropertyValue("--st-background-color").trim() || (dark ? "#0e1117" : "#ffffff");
    const what = JSON.stringify([this.data.stamp, this.box, this.threshold, dpr, dark, this.ink, this.paper]);
    if (what !== this.drawn) {
      this.picture = this.drawPicture(dpr);
      this.drawn = what;
    }
    const pen = this.canvas.getContext("2d");
    pen.drawImage(this.picture, 0, 0);
    pen.setTransform(dpr, 0, 0, dpr, 0, 0);
    this.drawOutline(pen, this.selected, true);
    this.drawOutline(pen, this.cursor, false);
  }

  // All but what moves: drawn once, and copied under every selection.
  drawPicture(dpr) {
    const picture = document.createElement("canvas");
    picture.width = this.canvas.width;
    picture.height = this.canvas.height;
    const pen = picture.getContext("2d");
    pen.setTransform(dpr, 0, 0, dpr, 0, 0);
    pen.fillStyle = this.paper;
    pen.fillRect(0, 0, this.box.width, this.box.height);
    this.drawCells(pen);
    this.drawMarks(pen);
    this.drawAxes(pen);
    this.drawScale(pen);
    return picture;
  }

  // Draw again if there is another size for it.
  fit() {
    if (!this.root.isConnected) {
      this.watcher.disconnect();
      window.removeEventListener("resize", this.resized);
      document.removeEventListener("interp-mark", this.marked);
      return;
    }
    if (!this.data || !this.root.clientWidth) return;
    if (JSON.stringify(this.layout()) !== JSON.stringify(this.box)) this.draw();
  }

  drawCells(pen) {
    const { rows, cols } = this.data;
    const image = new ImageData(cols, rows);
    for (let row = 0; row < rows; row += 1) {
      const down = this.data.upward ? rows - 1 - row : row;
      for (let col = 0; col < cols; col += 1) {
        const value = this.at(row, col);
        const i = 4 * (down * cols + col);
        if (Number.isNaN(value)) continue;
        const [red, green, blue] = this.isHatched(value) ? [190, 190, 190] : this.colour(value);
        image.data.set([red, green, blue, 255], i);
      }
    }
    const small = document.createElement("canvas");
    small.width = cols;
    small.height = rows;
    small.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    const { cellWidth, cellHeight } = this.box;
    pen.drawImage(small, this.box.left, TOP, cols * cellWidth, rows * cellHeight);
  }

  drawMarks(pen) {
    const { rows, cols, signed, high } = this.data;
    const { cellWidth, cellHeight } = this.box;
    const roomy = cellWidth >= 18 && cellHeight >= 13;
    const hatching = cellWidth >= 5 && cellHeight >= 5;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.font = `${Math.min(12, cellHeight - 2)}px sans-serif`;
    if (!roomy && !hatching) return;
    for (let row = 0; row < rows; row += 1) {
      for (let col = 0; col < cols; col += 1) {
        const value = this.at(row, col);
        const [x, y] = [this.x(col), this.y(row)];
        if (hatching && (Number.isNaN(value) || this.isHatched(value))) this.hatch(pen, x, y, Number.isNaN(value));
        if (!roomy || Number.isNaN(value)) continue;
        const text = this.words ? this.text(row, col) : signed && Math.abs(value) > 0.05 * high ? (value < 0 ? "−" : "+") : value > high ? "▲" : "";
        if (!text) continue;
        const [red, green, blue] = this.isHatched(value) ? [190, 190, 190] : this.colour(value);
        const written = fitted(pen, text, cellWidth - 2);
        if (written !== text && written.length < 4) continue;
        pen.fillStyle = 0.3 * red + 0.6 * green + 0.1 * blue < 128 ? "#ffffff" : "#000000";
        pen.fillText(written, x + cellWidth / 2, y + cellHeight / 2);
      }
    }
  }

  hatch(pen, x, y, isMissing) {
    const { cellWidth, cellHeight } = this.box;
    pen.strokeStyle = isMissing ? "rgba(128,128,128,0.35)" : "rgba(70,70,70,0.8)";
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(x, y + cellHeight);
    pen.lineTo(x + cellWidth, y);
    pen.stroke();
  }

  drawAxes(pen) {
    const { row_labels: rowLabels, col_labels: colLabels, row_name: rowName, col_name: colName, rows, cols } = this.data;
    const { cellWidth, cellHeight, height, left, bottom, isTurned, colStep } = this.box;
    const end = height - bottom;
    pen.fillStyle = this.ink;
    pen.font = FONT;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let row = 0; row < rows; row += stepFor(14, cellHeight)) {
      pen.fillText(fitted(pen, rowLabels[row], this.rowRoom()), left - 6, this.y(row) + cellHeight / 2);
    }
    this.drawTurned(pen, rowName, 8, TOP + (rows * cellHeight) / 2, "center");
    for (let col = 0; col < cols; col += colStep) {
      const x = this.x(col) + cellWidth / 2;
      if (isTurned) this.drawTurned(pen, fitted(pen, colLabels[col], LONGEST.col), x, end + 5, "right");
      else {
        pen.textAlign = "center";
        pen.fillText(colLabels[col], x, end + 11);
      }
    }
    pen.textAlign = "center";
    pen.fillText(colName, left + (cols * cellWidth) / 2, height - 8);
  }

  drawTurned(pen, text, x, y, align) {
    pen.save();
    pen.translate(x, y);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = align;
    pen.fillText(text, 0, 0);
    pen.restore();
  }

  drawScale(pen) {
    const { low, high, rows } = this.data;
    const { cellHeight, cellWidth } = this.box;
    const tall = Math.min(rows * cellHeight, 160);
    const x = this.box.left + this.data.cols * cellWidth + 12;
    for (let i = 0; i < tall; i += 1) {
      const [red, green, blue] = this.colour(high - ((high - low) * i) / Math.max(1, tall - 1));
      pen.fillStyle = `rgb(${red},${green},${blue})`;
      pen.fillRect(x, TOP + i, 12, 1.5);
    }
    pen.fillStyle = this.ink;
    pen.font = FONT;
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    this.root.querySelector(".tools").style.top = `${TOP + tall + 14}px`;
    const ticks = this.data.signed ? [high, 0, low] : [high, low];
    for (const tick of ticks) {
      pen.fillText(round(tick), x + 16, TOP + 5 + (tall - 10) * ((high - tick) / (high - low || 1)));
    }
  }

  drawOutline(pen, cell, isSelected) {
    if (!cell || (!isSelected && document.activeElement !== this.canvas && !this.root.getRootNode().activeElement)) return;
    const [x, y] = [this.x(cell[1] ?? 0), this.y(cell[0])];
    const { cellWidth, cellHeight } = this.box;
    const wide = cell[1] === null ? this.data.cols * cellWidth : cellWidth;
    const passes = isSelected ? [[4, "#000000"], [2, "#ffffff"]] : [[3, "#000000"], [1, "#ffd400"]];
    for (const [thick, ink] of passes) {
      pen.lineWidth = thick;
      pen.strokeStyle = ink;
      pen.strokeRect(x, y, Math.max(wide, 3), Math.max(cellHeight, 3));
    }
  }

  // What is said and sent

  describe([row, col]) {
    const { row_name: rowName, col_name: colName, row_labels: rowLabels, col_labels: colLabels, unit } = this.data;
    const value = this.at(row, col);
    const said = Number.isNaN(value) ? this.data.missing : `${shown(value)}${unit ? ` ${unit}` : ""}`;
    const word = this.text(row, col);
    const text = word ? ` “${word}”` : "";
    return `${rowName} ${rowLabels[row]}, ${colName} ${colLabels[col]}: ${said}${text}${this.isHatched(value) ? `, ${this.data.hatched}` : ""}`;
  }

  pick(cell) {
    this.send("pick", { row: cell[0], col: cell[1] });
  }

  move(key) {
    const { rows, cols, upward } = this.data;
    const [row, col] = this.cursor || this.outset();
    const up = upward ? 1 : -1;
    const page = Math.max(1, Math.round(cols / 8));
    const moves = {
      ArrowUp: [row + up, col], ArrowDown: [row - up, col], ArrowLeft: [row, col - 1], ArrowRight: [row, col + 1],
      Home: [row, 0], End: [row, cols - 1], PageUp: [row, col - page], PageDown: [row, col + page],
    };
    if (!moves[key]) return false;
    const clamp = (value, size) => Math.max(0, Math.min(size - 1, value));
    this.cursor = [clamp(moves[key][0], rows), clamp(moves[key][1], cols)];
    this.live.textContent = this.describe(this.cursor);
    this.draw();
    return true;
  }

  listen() {
    const { canvas, tip, slider } = this;
    canvas.addEventListener("click", (event) => {
      const cell = this.cellAt(event);
      if (cell) this.pick(cell);
    });
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        this.pick(this.cursor || this.outset());
      } else if (this.move(event.key)) event.preventDefault();
    });
    canvas.addEventListener("focus", () => this.draw());
    canvas.addEventListener("blur", () => this.draw());
    canvas.addEventListener("mousemove", (event) => {
      const cell = this.cellAt(event);
      tip.hidden = !cell;
      if (!cell) return;
      tip.textContent = this.describe(cell);
      const bounds = this.root.getBoundingClientRect();
      const left = event.clientX - bounds.left;
      tip.style.left = `${Math.min(left + 14, bounds.width - tip.offsetWidth - 4)}px`;
      tip.style.top = `${event.clientY - bounds.top + 16}px`;
    });
    canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
    slider.addEventListener("input", () => {
      this.threshold = Number(slider.value);
      this.root.querySelector(".value").textContent = shown(this.threshold);
      this.draw();
    });
    slider.addEventListener("change", () => this.send("threshold", this.threshold));
    this.root.querySelector(".png").addEventListener("click", () => {
      const link = document.createElement("a");
      link.download = `${this.data.file}.png`;
      link.href = canvas.toDataURL("image/png");
      link.click();
    });
    this.root.querySelector(".full").addEventListener("click", () => this.root.requestFullscreen());
    this.root.addEventListener("fullscreenchange", () => this.draw());
    this.watcher = new ResizeObserver(() => this.fit());
    this.watcher.observe(this.root);
    const page = this.root.getRootNode().host?.closest("[data-testid=stMainBlockContainer]");
    if (page) this.watcher.observe(page);
    this.resized = () => this.fit();
    window.addEventListener("resize", this.resized);
    this.marked = (event) => { if (event.detail === this.data?.grid) this.draw(); };
    document.addEventListener("interp-mark", this.marked);
  }
}

const heats = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".heat");
  if (!heats.has(root)) heats.set(root, new Heat(root));
  const heat = heats.get(root);
  heat.update(data, setTriggerValue);
  heat.root.querySelector(".value").textContent = data.threshold === null ? "" : shown(heat.threshold);
}
